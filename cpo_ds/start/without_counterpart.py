"""Settings of other trainers that no setting of a recipe stands for, with the reason."""

from __future__ import annotations

_NOTHING = "nothing here corresponds to it"
_ALWAYS = "this is always so here"
_LOADING = "rows are read and tokenized once, before training"
_MEMORY = "it changes memory and time alone"

# The result does not depend on them.
EQUAL_SETTINGS = {
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict", "overwrite_cache", "overwrite_output_dir",
         "log_level", "log_level_replica", "disable_tqdm", "logging_first_step", "logging_dir",
         "run_name", "plot_loss", "include_num_input_tokens_seen", "ddp_timeout", "local_rank",
         "use_auth_token", "prediction_loss_only", "save_only_model", "save_safetensors",
         "include_tokens_per_second",
         "label_names", "skip_memory_metrics", "logging_nan_inf_filter", "use_cpu", "cache_dir",
         "ddp_find_unused_parameters", "display_num_translations", "ray_run_name", "project"),
        _NOTHING,
    ),
    **dict.fromkeys(
        ("dataset_num_proc", "preprocessing_num_workers", "preprocessing_batch_size", "streaming",
         "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
         "remove_unused_columns", "tokenized_path", "keep_linebreaks"),
        _LOADING,
    ),
    **dict.fromkeys(
        ("low_cpu_mem_usage", "gradient_checkpointing_kwargs", "use_reentrant_gc", "tf32",
         "per_device_eval_batch_size", "eval_accumulation_steps", "use_liger_kernel",
         "enable_liger_kernel", "use_flash_attention_2", "flash_attn", "torch_compile",
         "torch_empty_cache_steps", "upcast_layernorm", "use_unsloth", "use_cache",
         "activation_checkpointing", "activation_checkpointing_kwargs"),
        _MEMORY,
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_token"),
        "the folder export/ of the run can be uploaded afterwards",
    ),
    **dict.fromkeys(
        ("generate_during_eval", "predict_with_generate", "num_beams", "eval_num_beams"),
        "train.sample_translations and cpo-ds translate make translations",
    ),
    **dict.fromkeys(
        ("label_pad_token_id", "padding_value", "ignore_pad_token_for_loss", "right_pad",
         "group_by_length", "length_column_name", "train_sampling_strategy"),
        "pairs are packed without padding, and prompts never count in the loss",
    ),
    "ignore_prompt_token_for_loss": "prompts never count in the loss here",
    "packing": "pairs are always packed, each attending to itself alone",
    "is_encoder_decoder": "models here are decoders",
    "max_completion_length": "only encoder-decoders of the other trainer use it",
    "max_target_length": "only encoder-decoders of the other trainer use it",
    "max_new_tokens": "it is for translating, as in cpo-ds translate",
    "text_test_file": "cpo-ds translate takes texts to translate",
    "override_test_data_path": "cpo-ds translate and cpo-ds evaluate take test sets",
    "average_tokens_across_devices": _ALWAYS,
    "dataloader_drop_last": "the last step of an epoch takes the remaining pairs",
}  # fmt: skip

# The result may change.
LOST_SETTINGS = {
    "trust_remote_code": "models with code of their own are not loaded",
    "model_revision": "download that revision, and name its folder",
    "model_init_kwargs": "give a folder whose config.json has these values",
    "tokenizer_name": "the tokenizer is that of the model's folder",
    "use_fast_tokenizer": "the fast tokenizer is taken if the model has one",
    "resize_vocab": "prepare the model's folder beforehand",
    "new_special_tokens": "prepare the model's folder beforehand",
    "rope_scaling": "set it in the model's config.json",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "label_smoothing_factor": "that of the language model's loss; see loss.label_smoothing",
    "lr_scheduler_kwargs": "schedules take no further arguments",
    "optim_args": "see optim.betas and optim.eps",
    "load_best_model_at_end": "the last step is exported; cpo-ds export takes any checkpoint",
    "metric_for_best_model": "the last step is exported; cpo-ds export takes any checkpoint",
    "greater_is_better": "the last step is exported; cpo-ds export takes any checkpoint",
    "max_samples": "cut the data beforehand, as by head -n",
    "max_train_samples": "cut the data beforehand, as by head -n",
    "max_eval_samples": "cut the data beforehand, as by head -n",
    "max_test_samples": "cut the data beforehand, as by head -n",
    "data_seed": "train.seed is the seed of the order too",
    "full_determinism": "set train.deterministic",
    "disable_shuffling": "the pairs are shuffled in each epoch",
    "use_dora": "LoRA alone is trained",
    "pissa_init": "LoRA alone is trained, from zero",
    "loraplus_lr_ratio": "both matrices have the same learning rate",
    "lora_target_parameters": "name linear layers in lora.target_modules",
    "lora_modules_to_save": "nothing but the adapter is trained",
    "additional_target": "nothing but the adapter is trained",
    "load_in_8bit": "there are no 8-bit weights; see model.quantization",
    "ref_model": "loss.reference is the policy before training",
    "ref_model_adapters": "loss.reference is the policy before training",
    "pref_bco_weight": "there is no BCO term",
    "ld_alpha": "there is no LD-DPO",
    "use_galore": "every run here takes AdamW",
    "use_apollo": "every run here takes AdamW",
    "use_badam": "every run here takes AdamW",
    "few_shot_eval_path": "prompts have no examples",
    "use_ul2": "it is for training on plain text",
    "use_prefix_lm": "attention is causal",
    "encoder_decoder_type": "models here are decoders",
    "multi_gpu_one_model": "deepspeed: zero3 splits a model over GPUs",
}
