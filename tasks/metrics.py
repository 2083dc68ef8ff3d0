"""Every number a stage may tell, by name: its unit, whether lower or higher is better, and what it means."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    unit: str
    better: Literal["lower", "higher", "neither"]
    meaning: str


METRICS: dict[str, Metric] = {
    "perplexity": Metric("1", "lower", "exp of held-out loss per token"),
    "unigram_perplexity": Metric("1", "neither", "held-out perplexity of the unigram model, the bar for having learned"),
    "heldout_loss": Metric("nats/token", "lower", "mean next-token cross-entropy on the held-out split"),
    "task_accuracy": Metric("share", "higher", "zero-shot multiple choice on held-out text"),
    "task_accuracy_stderr": Metric("share", "lower", "standard error of task_accuracy"),
    "task_accuracy_normalised": Metric("share", "higher", "the same, by log-likelihood per byte"),
    "task_chance": Metric("share", "neither", "accuracy of guessing"),
    "reference_kl": Metric("nats/token", "lower", "KL divergence from the reference model's next token, mean"),
    "reference_flips": Metric("share", "lower", "tokens after which another one is likeliest than in the reference model"),
    "sparsity": Metric("share", "higher", "dead share of the prunable weights, from the masks"),
    "essential_sparsity": Metric("share", "higher", "the most the search found the model to lose within its tolerance"),
    "pattern_holds": Metric("share", "higher", "N:M groups (or matrices) whose stored weights keep the promised pattern"),
    "zero_weights": Metric("share", "higher", "stored zeros among the prunable weights"),
    "bytes": Metric("B", "lower", "weight files on disk"),
    "mask_bytes": Metric("B", "lower", "mask file on disk"),
    "parameters": Metric("1", "lower", "parameters, dead ones included"),
    "live_parameters": Metric("1", "lower", "parameters that are not masked"),
    "bits_per_parameter": Metric("bit", "lower", "weight bytes per parameter"),
    "prunable_parameters": Metric("1", "neither", "prunable weights, dead ones included"),
    "average_parameters": Metric("1", "neither", "live prunable weights, averaged over training"),
    "prefill_tokens_per_second": Metric("token/s", "higher", "measured prompt speed in transformers"),
    "decode_tokens_per_second": Metric("token/s", "higher", "measured greedy decoding speed in transformers"),
    "training_flops": Metric("FLOP", "lower", "training cost by the SPDF formula"),
    "training_tokens": Metric("token", "neither", "tokens seen in training"),
    "training_loss": Metric("nats/token", "lower", "cross-entropy on the last training batches"),
    "loss": Metric("nats/token", "lower", "cross-entropy on the training batch"),
    "kl": Metric("nats/token", "lower", "KL divergence to the teacher, times temperature squared"),
    "features": Metric("1", "lower", "squared error of hidden states over the teacher's mean square, summed over blocks"),
    "gradient_norm": Metric("1", "neither", "global norm before clipping"),
    "in_time_overparameterisation": Metric("share", "neither", "masked weights that have been alive at any time"),
    "flip_rate": Metric("share", "neither", "weights whose mask changed since the step before"),
    "replay_loss": Metric("nats/token", "lower", "cross-entropy on replayed sequences of past tasks"),
    "sequences_left": Metric("1", "neither", "training sequences of the present task that were not removed"),
    "forgetting": Metric("nats/token", "lower", "rise of held-out loss on earlier tasks since each was learned, mean"),
    "learning_rate": Metric("1", "neither", "learning rate of the step"),
    "tokens": Metric("token", "neither", "tokens seen so far"),
    "tokens_per_second": Metric("token/s", "higher", "training throughput"),
    "vocabulary": Metric("1", "neither", "tokens of the tokenizer"),
    "train_tokens": Metric("token", "neither", "tokens of the train split"),
    "calibration_tokens": Metric("token", "neither", "tokens of the calibration split"),
    "heldout_tokens": Metric("token", "neither", "tokens of the held-out split"),
    "reconstruction_error": Metric("share", "lower", "squared error of block outputs relative to the dense block, mean"),
    "unseen_matrices": Metric("1", "lower", "matrices (experts) that no calibration token reached"),
    "peak_memory_bytes": Metric("B", "lower", "the most memory the stage held; on a GPU, of the GPU's"),
    "merged_models": Metric("1", "neither", "models that were merged into this one"),
    "export_logits_error": Metric("1", "lower", "largest logit difference between the solved and the reloaded model"),
    "seconds": Metric("s", "lower", "time inside the stage's own run"),
    "overhead_seconds": Metric("s", "lower", "time from starting a stage to its artifact, less seconds"),
}
