"""Configurations in the form of other trainers' own examples."""

from __future__ import annotations

from pathlib import Path

ALMA_SCRIPT = """\
#!/bin/bash
OUTPUT_DIR=${1:-"./alma-cpo"}
pairs=${2:-"de-en,cs-en,en-de"}
# a port at random
port=$(( RANDOM % (50000 - 30000 + 1 ) + 30000 ))

accelerate launch --main_process_port ${port} --config_file configs/train_bf16.yaml \\
     run_cpo_llmmt.py \\
    --model_name_or_path haoranxu/ALMA-13B-Pretrain \\
    --tokenizer_name haoranxu/ALMA-13B-Pretrain \\
    --peft_model_id  haoranxu/ALMA-13B-Pretrain-LoRA \\
    --cpo_scorer kiwi_xcomet \\
    --cpo_data_path  haoranxu/ALMA-R-Preference \\
    --language_pairs ${pairs} \\
    --use_peft --do_train --bf16 --low_cpu_mem_usage \\
    --use_fast_tokenizer False \\
    --beta 0.1 \\
    --learning_rate 1e-4 \\
    --weight_decay 0.01 \\
    --gradient_accumulation_steps 1 \\
    --lr_scheduler_type inverse_sqrt \\
    --warmup_ratio 0.01 \\
    --ignore_pad_token_for_loss \\
    --per_device_train_batch_size 2 \\
    --evaluation_strategy no \\
    --save_strategy steps \\
    --save_total_limit 1 \\
    --logging_steps 0.05 \\
    --output_dir ${OUTPUT_DIR} \\
    --num_train_epochs 1 \\
    --max_new_tokens 256 \\
    --max_source_length 256 \\
    --max_prompt_length 256 \\
    --max_length 512 \\
    --seed 42 \\
    --report_to none
bash ./evals/eval_generation.sh --folder ${OUTPUT_DIR}
"""
ACCELERATE_FILE = """\
compute_environment: LOCAL_MACHINE
deepspeed_config:
  gradient_accumulation_steps: 1
  gradient_clipping: 1.0
  offload_param_device: cpu
  zero_stage: 2
distributed_type: DEEPSPEED
mixed_precision: bf16
num_processes: 8
"""
LLAMA_FACTORY_FILE = """\
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true

### method
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.1
pref_loss: sigmoid  # choices: [sigmoid (dpo), orpo, simpo]

### dataset
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true

### output
output_dir: saves/llama3-8b/lora/dpo
logging_steps: 10
save_steps: 500
plot_loss: true

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""
TRL_SCRIPT = """\
export CUDA_VISIBLE_DEVICES=0,1
accelerate launch --num_processes 4 examples/scripts/cpo.py \\
    --dataset_name trl-lib/ultrafeedback_binarized \\
    --model_name_or_path=gpt2 \\
    --per_device_train_batch_size 4 \\
    --max_steps 1000 \\
    --learning_rate 8e-5 \\
    --gradient_accumulation_steps 2 \\
    --eval_steps 500 \\
    --output_dir="gpt2-lora-aligned-cpo" \\
    --optim rmsprop \\
    --warmup_steps 150 \\
    --report_to wandb tensorboard \\
    --bf16 \\
    --no_remove_unused_columns \\
    --use_peft \\
    --lora_r 16 \\
    --lora_alpha 16 \\
    --lora_target_modules q_proj k_proj \\
    --frobnicate 3
"""


def write_all(folder: Path) -> None:
    """Writes the examples: alma/runs/cpo.sh with its accelerate file, lf.yaml and trl.sh."""
    for name, text in {
        "alma/runs/cpo.sh": ALMA_SCRIPT,
        "alma/configs/train_bf16.yaml": ACCELERATE_FILE,
        "lf.yaml": LLAMA_FACTORY_FILE,
        "trl.sh": TRL_SCRIPT,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
