"""Latent diffusion, first half: a small autoencoder of images, as `udm image autoencoder` trains one.

    python recipes/latent_diffusion.py --data digits --output runs/autoencoder
    udm image train --data digits --autoencoder runs/autoencoder --output runs/latent
    udm image generate runs/latent --label all -n 40 -o latent.png
    accelerate launch recipes/latent_diffusion.py --data my/images --image_size 32 --output runs/mine --bf16
    python recipes/latent_diffusion.py --help      every option

The trainer is that of `udm image train`, `--data` what it is there (MNIST: the folder of its files). The image model
keeps the autoencoder in its checkpoint and decodes by itself: `ImagePipeline.from_pretrained("runs/latent")`.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

from continuous.train_autoencoder import main  # noqa: E402

if __name__ == "__main__":
    main()
