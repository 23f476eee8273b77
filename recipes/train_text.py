"""Train a text diffusion model.

    accelerate launch recipes/train_text.py --data names.txt --output runs/names --bf16
    python recipes/train_text.py --help          every option: ours, and every field of TrainingArguments

On several processes: `accelerate launch --config_file recipes/accelerate/ddp.yaml` (or fsdp2, zero2, zero3) in place of
`accelerate launch`; on several machines: recipes/slurm/train.sbatch. On CPUs:
`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 recipes/train_text.py --use_cpu ...` (with
`--cpu`
alone, accelerate 1.15 starts a single process). `udm train` is the same in one process.

What happens, in order (`udm_text/cli/train_text.py` reads like this list):
    the corpus becomes splits      a text file, a folder, jsonl/csv/parquet or a `datasets` name; 5 % held out if need
    be
    a tokenizer is trained         wordpiece, char or bpe; or an existing one is taken
    texts become rows              a row a line (lengths remembered for sampling), rows of fixed length, or packed
    blocks
    a model is made                from scratch, or around a pretrained masked LM, or one of ours continued
    it is trained                  checkpoints, TensorBoard, a loss plot; --resume continues
    the bound is measured          on held-out rows, from the files that were written
    report.json is written         every figure that was printed
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

from udm_text.cli.train_text import main  # noqa: E402

if __name__ == "__main__":
    main()
