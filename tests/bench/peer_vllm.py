"""vLLM's side of bench_runtimes.py, on its CPU build in its own environment (``make bench-runtimes``); imports nothing of ours.

python peer_vllm.py MODEL ROWS.json COUNT      prints, last line, as JSON: of every row of token ids the log-probability of each
but the first, and the COUNT tokens that are said next, the likeliest each time
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def main(model: str, given: str, count: str) -> None:
    from vllm import LLM, SamplingParams

    rows = json.loads(Path(given).read_text())
    length = max(map(len, rows)) + int(count)
    engine = LLM(model, dtype="bfloat16", enforce_eager=True, max_model_len=length, max_num_seqs=len(rows))
    asked = SamplingParams(temperature=0, max_tokens=int(count), ignore_eos=True, prompt_logprobs=0, detokenize=False)
    told = []
    for answer in engine.generate([{"prompt_token_ids": row} for row in rows], asked, use_tqdm=False):
        seen = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:], strict=True)
        told.append({"seen": [found[token].logprob for token, found in seen], "said": list(answer.outputs[0].token_ids)})
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
