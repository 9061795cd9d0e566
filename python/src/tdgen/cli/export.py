"""Writes a run's record as the files that trainers read.

  hf          Hugging Face datasets: save_to_disk's Arrow layout, or Parquet. Every column of the record
  axolotl     Axolotl's prepared columns for its kd integration (a save_to_disk folder)
  distillkit  DistillKit's offline teacher columns (a save_to_disk folder)
  nemo        NeMo-Aligner's JSON lines with top-k logits
  llamacpp    the file of llama-perplexity --kl-divergence-base, from capture.mode = full
  hdf5        teacher_logits.h5 and metadata.json of the Python generator that tdgen replaces

RUN is an output folder of tdgen, OUT a folder or file that must not exist. Memory does not grow with the
run; OUT appears whole or not at all, and carries the run's fingerprints. What a format cannot say is
refused. tdgen-export FORMAT --help says more of each.
"""

import argparse
import os
import sys


NEEDS = {"hf": "numpy ml_dtypes xxhash tqdm pyarrow", "axolotl": "numpy ml_dtypes xxhash tqdm pyarrow", "distillkit": "numpy ml_dtypes xxhash tqdm pyarrow",
         "nemo": "numpy ml_dtypes xxhash tqdm", "llamacpp": "numpy ml_dtypes xxhash tqdm", "hdf5": "numpy ml_dtypes xxhash tqdm h5py"}


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def temperature(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no temperature")
    return value


def bos(text):
    return text if text == "none" else str(int(text))


def arguments(argv):
    p = argparse.ArgumentParser(prog="tdgen-export", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="layout", metavar="FORMAT", required=True, help="one of the six above")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("run", metavar="RUN")
    common.add_argument("out", metavar="OUT")
    common.add_argument("--samples", type=positive, metavar="N", help="the first N samples (all)")
    common.add_argument("--partial", action="store_true",
                        help="a folder that holds only some shards, or a run that is not finished")
    common.add_argument("--student", "--tokenizer", dest="tokenizer", metavar="DIR",
                        help="the student's folder or tokenizer.json: refused if its hash is not the teacher's, or if the "
                             "teacher has probability on ids that the student has not (vocab_size of its config.json)")
    common.add_argument("--vocab-size", "--student-vocab", dest="student_vocab", type=positive, metavar="N", help="the same of a student of N ids")
    common.add_argument("--cut-vocab", action="store_true",
                        help="leave out ids that the student has not, and say what probability goes with them")
    common.add_argument("--no-verify", action="store_true", help="leave hashes of the run's files unchecked")
    common.add_argument("--model", metavar="DIR",
                        help="the teacher's folder, whose lm_head makes logits of a hidden run's states")
    common.add_argument("--valid-vocab", type=positive, metavar="N",
                        help="with --model: ids from N on are padding and get no probability")
    common.add_argument("--quiet", action="store_true", help="no progress bar")

    def add(name, text):
        return sub.add_parser(name, parents=[common], description=text,
                              formatter_class=argparse.RawDescriptionHelpFormatter)

    def choose_set(q, tail=False):
        q.add_argument("--top-k", type=positive, metavar="K", help="the K most probable (all that are recorded)")
        q.add_argument("--source", choices=("combined", "topk", "sample"),
                       help="of a topk+sample run: top k with draws outside of it (default), or one of the two")
        if tail:
            q.add_argument("--tail", choices=("ignore", "renormalise"), default="ignore",
                           help="log-probabilities over the vocabulary, or scaled so that the set sums to 1 (ignore)")

    q = add("hf", "the record as it is, one row a sample, for datasets.load_from_disk or load_dataset")
    q.add_argument("--format", choices=("arrow", "parquet"), default="arrow")
    q.add_argument("--f16-bits", action="store_true",
                   help="log-probabilities, logits and states as uint16 bits of half floats (float32 otherwise: half "
                        "float columns are read wrongly by many Parquet readers)")
    q = add("axolotl", "input_ids, labels, attention_mask, position_ids, target_token_ids, target_logprobs, "
                       "target_mask\n(datasets: - path: OUT). Use --tail renormalise with kd_normalize_topk: true")
    choose_set(q, tail=True)
    q.add_argument("--temperature", type=temperature, default=1.0, metavar="T",
                   help="the trainer's kd_temperature; recorded in capture.temperatures (1)")
    q.add_argument("--before-0.10", dest="before_0_10", action="store_true",
                   help="for Axolotl up to 0.9.2, whose trainer shifts the target rows itself")
    q = add("distillkit", "input_ids, labels, token_ids, top_values (row i predicts token i + 1); then "
                          "distillkit-pack-logits --dataset OUT")
    choose_set(q)
    q.add_argument("--compressed", nargs="?", const="float32", choices=("float32", "float16"),
                   help="compressed_logprobs and bytepacked_indices, every value exact in that type, with their "
                        "compression_config.yaml (the config's teacher.logprob_compressor)")
    q = add("nemo", "JSON lines: tokens, labels, loss_mask, topk_logits, topk_token_ids, log_sum_exp_logits, index")
    q.add_argument("--top-k", type=positive, metavar="K")
    q = add("llamacpp", "for llama-perplexity --kl-divergence --kl-divergence-base OUT; needs capture.mode = full and "
                        "samples of one length\n(data.max_length = N, data.overflow = split)")
    q.add_argument("--bos", type=bos, metavar="ID|none",
                   help="the token that llama.cpp puts in front of each chunk, or none; see the model's add_bos_token")
    q.add_argument("--n-ctx", type=positive, metavar="N", help="tokens of a chunk (the longest sample's)")
    q.add_argument("--skip-others", action="store_true", help="leave out samples that are no whole chunk")
    q = add("hdf5", "a folder with teacher_logits.h5 (logits_values, logits_indices, seq_lengths) and metadata.json")
    q.add_argument("--top-k", type=positive, metavar="K")
    q.add_argument("--max-length", type=positive, metavar="N", help="positions of a row (data.max_length)")
    q.add_argument("--allow-gaps", action="store_true", help="zeros where a position is no training target")
    return p.parse_args(argv)


def work(a):
    try:
        from .. import export as ex
        from .. import reader, trust

        if a.layout == "hdf5":
            import h5py  # noqa: F401
        elif "pyarrow" in NEEDS[a.layout]:
            import pyarrow  # noqa: F401
    except ImportError as e:
        print(f"tdgen-export: {e}; it needs: pip install {NEEDS[a.layout]}", file=sys.stderr)
        return 2
    try:
        if a.model:
            from .. import logits

            run = logits.FullRun(a.run, a.model, a.valid_vocab, not a.no_verify, a.partial)
        else:
            run = reader.Run(a.run, not a.no_verify, a.partial)
        ex.check_whole(run, a.partial)
        if a.tokenizer:
            ex.check_tokenizer(run, a.tokenizer)
        options = {k: v for k, v in vars(a).items()
                   if k not in ("run", "out", "layout", "quiet", "partial", "tokenizer", "no_verify")
                   and v not in (None, False)}
        student = ex.student_of(a.tokenizer, a.student_vocab, a.cut_vocab)
        if student:
            options["student"] = student
        text = ex.EXPORTS[a.layout](run, a.out, options, a.quiet)
    except (ex.ExportError, trust.RecordError, ValueError) as e:
        print(f"tdgen-export: {e}", file=sys.stderr)
        return 4
    except OSError as e:
        print(f"tdgen-export: {e}", file=sys.stderr)
        return 6
    print(f"{a.out}: {text}")
    return 0


def main(argv=None):
    a = arguments(argv)
    try:
        return work(a)
    except KeyboardInterrupt:
        print("\ntdgen-export: stopped, nothing was written", file=sys.stderr)
        return 130
