"""Makes logits of a run that recorded hidden states (capture.mode = hidden), through the teacher's lm_head.

OUT becomes a folder with a shard-NNNNNN.safetensors for each of RUN's: `logits` [R, V], and the tensors
that say which rows they are (input_ids, sample_offsets, row_offsets, row_position, ...) as RUN has them.
Rows are streamed. Exports need no such folder: tdgen-export takes --model DIR itself, and Python
code tdgen.logits.FullRun(RUN, DIR).
"""

import argparse
import os
import sys



def arguments(argv):
    p = argparse.ArgumentParser(prog="tdgen-logits", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", metavar="RUN")
    p.add_argument("out", metavar="OUT")
    p.add_argument("--model", required=True, metavar="DIR", help="the teacher's folder")
    p.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="f32", help="of the logits written (f32)")
    p.add_argument("--valid-vocab", type=int, metavar="N", help="ids from N on are padding and get -inf")
    p.add_argument("--tokenizer", metavar="DIR",
                   help="the student's folder: refused if its tokenizer is another, or if the teacher has probability on "
                        "ids that the student has not")
    p.add_argument("--student-vocab", type=int, metavar="N", help="the same of a student of N ids")
    p.add_argument("--cut-vocab", action="store_true",
                   help="only the student's columns, with logsumexp over all; what is lost is said")
    p.add_argument("--no-verify", action="store_true", help="leave hashes of the run's files unchecked")
    p.add_argument("--partial", action="store_true", help="a run that is not finished or not all here")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p.parse_args(argv)


def work(a):
    try:
        from .. import export, logits
    except ImportError as e:
        print(f"tdgen-logits: {e}; it needs: pip install numpy ml_dtypes safetensors xxhash tqdm", file=sys.stderr)
        return 2
    try:
        run = logits.FullRun(a.run, a.model, a.valid_vocab, not a.no_verify, a.partial)
        export.check_whole(run, a.partial)
        if a.tokenizer:
            export.check_tokenizer(run, a.tokenizer)
        student = export.student_of(a.tokenizer, a.student_vocab, a.cut_vocab)
        n_rows = logits.write_logits(run, a.out, a.dtype, a.quiet, student)
    except (export.ExportError, ValueError) as e:
        print(f"tdgen-logits: {e}", file=sys.stderr)
        return 4
    except OSError as e:
        print(f"tdgen-logits: {e}", file=sys.stderr)
        return 6
    n = min(run.vocab_size, student.n) if student else run.vocab_size
    print(f"{a.out}: {len(run.shards)} shards, logits of {n_rows:,} positions, {n:,} tokens each"
          + (student.summary(run.vocab_size) if student else ""))
    return 0


def main(argv=None):
    a = arguments(argv)
    try:
        return work(a)
    except KeyboardInterrupt:
        print("\ntdgen-logits: stopped, nothing was written", file=sys.stderr)
        return 130
