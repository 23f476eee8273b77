"""Train an image model, hot or cold.

    accelerate launch recipes/train_image.py --output runs/digits
    accelerate launch recipes/train_image.py --data my/images --image_size 32 --network unet --output runs/mine --bf16
    accelerate launch recipes/train_image.py --process cold --degradation blur --output runs/digits-blur
    python recipes/train_image.py --help         every option: ours, and every field of TrainingArguments

On several processes: `accelerate config` once, or `accelerate launch --multi_gpu --num_processes 8 ...`. `udm image
train` is the same in one process.

What happens, in order (`continuous/train_image.py` reads like this list):
    images become rows           scikit-learn's digits, a folder, MNIST's files, or a `datasets` name; some held out
    a process is made              Gaussian noise (vp, ve, rf) or a degradation (blur, pixel_mask, pool, desaturate)
    a network is made              a small one, or diffusers' U-Net; the checkpoint carries process and prediction type
    it is trained                  by the trainer of the text side: row-keyed noise, checkpoints, --resume, an average
                                   of the weights, which is what is written
    the held-out loss is measured  from the files that were written; samples.png, loss.png
    report.json is written         every figure that was printed
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

from continuous.train_image import main  # noqa: E402

if __name__ == "__main__":
    main()
