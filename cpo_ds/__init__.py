"""cpo_ds: Contrastive Preference Optimization for LLM translators on DeepSpeed."""

__version__ = "0.2.0"
