"""Makes a token file for tdgen of any Hugging Face dataset on disk.

SOURCE is a file (parquet, arrow, json, jsonl, csv, txt; also .gz, .zst) or a folder (what
save_to_disk wrote, or a dataset of the hub as it was downloaded). A row is one of:
  messages   a list of {role, content}, or ShareGPT's {from, value}: rendered with the tokenizer's own
             chat template; the targets are what the assistant says, its end-of-turn token included.
             Columns tools, documents and chat_template_kwargs go to the template as well
  prompt     columns prompt and completion (or --prompt-field and --completion-field), texts, tokenised apart,
             or lists of messages, rendered as one conversation; the completion is the target
  text       a text, every token a target
Rows are streamed, memory does not grow with the dataset. The result is read by tdgen as it is:
  tdgen -c run.ini data.path=OUT
It carries the hash of tokenizer.json: tdgen refuses it for a teacher with another tokenizer.
No code of SOURCE or DIR is run: a chat template renders in transformers' sandbox.
"""

import argparse
import os
import sys

# Everything is on disk: nothing shall ask the network. Set before the libraries are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["HF_DATASETS_TRUST_REMOTE_CODE"] = "0"  # before version 4, datasets could run a folder's script
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from .. import prepare as prep  # noqa: E402

BAD_ROWS_LISTED = 10


def arguments(argv):
    p = argparse.ArgumentParser(
        prog="tdgen-prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("source", metavar="SOURCE")
    p.add_argument("--model", required=True, metavar="DIR", help="the teacher's folder, or any with its tokenizer.json")
    p.add_argument("--out", required=True, metavar="FILE", help="the token file, .safetensors")
    p.add_argument("--split", default="train", help="of a dataset with several (train)")
    p.add_argument("--messages-field", metavar="NAME", help="messages or conversations, when there is such a column")
    p.add_argument("--text-field", metavar="NAME", help="text, when there is such a column and no messages")
    p.add_argument("--prompt-field", metavar="NAME")
    p.add_argument("--completion-field", metavar="NAME")
    p.add_argument("--chat-template", metavar="FILE", help="instead of the tokenizer's own")
    p.add_argument("--tokenizer-from", choices=("json", "auto"), default="json",
                   help="tokenizer.json as it stands, as tdgen reads it, or what transformers' AutoTokenizer makes of the "
                        "folder; where the two differ, that is said (json)")
    p.add_argument("--append-eos", metavar="TOKEN", help="text and prompt rows: ends each row, as a target")
    p.add_argument("--no-special-tokens", action="store_true",
                   help="text and prompt rows: without what the tokenizer adds by itself (such as BOS)")
    p.add_argument("--max-rows", type=int, default=0, metavar="N", help="the first N rows (all)")
    p.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail",
                   help="a row that cannot be converted stops, or is counted and left out (fail)")
    p.add_argument("--overwrite", action="store_true", help="replace a token file that is there already")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    a = p.parse_args(argv)
    if (a.prompt_field is None) != (a.completion_field is None):
        p.error("--prompt-field and --completion-field go together")
    if (a.messages_field is not None) + (a.text_field is not None) + (a.prompt_field is not None) > 1:
        p.error("a row is one of --messages-field, --text-field, --prompt-field")
    if a.max_rows < 0:
        p.error("--max-rows is 0 or more")
    if not os.path.isdir(a.model):
        p.error(f"--model {a.model} is no folder")
    return a


def choose_fields(a, row):
    """('messages', name), ('text', name) or ('prompt', None) by the arguments or the columns."""
    if a.prompt_field:
        wanted = ("prompt", None)
    elif a.messages_field or a.text_field:
        wanted = ("messages", a.messages_field) if a.messages_field else ("text", a.text_field)
    else:
        wanted = next(((kind, name) for kind, name in (("messages", "messages"), ("messages", "conversations"),
                                                       ("messages", "conversation"), ("text", "text"))
                       if name in row), None)
    columns = ", ".join(map(str, row))
    if wanted is None and "prompt" in row and "completion" in row:
        a.prompt_field, a.completion_field = "prompt", "completion"
        wanted = ("prompt", None)
    if wanted is None and "chosen" in row and "rejected" in row:
        raise prep.PrepareError("these are preferences (chosen, rejected): say which of the two the teacher is to read, with "
                                "--messages-field or --text-field")
    if wanted is None and "prompt" in row:
        raise prep.PrepareError("these are prompts without completions: there is no target for a student; --text-field prompt "
                                "makes every token of them one")
    if wanted is None:
        raise prep.PrepareError(
            f"which column is it? There are: {columns}. Say --messages-field, --text-field, or "
            "--prompt-field and --completion-field")
    for name in (wanted[1], a.prompt_field, a.completion_field):
        if name is not None and name not in row:
            raise prep.PrepareError(f"there is no column {name}; there are: {columns}")
    return wanted


def note(text):
    from tqdm import tqdm

    tqdm.write(f"tdgen-prepare: {text}", file=sys.stderr)


class Converter:
    def __init__(self, a, kind, name):
        self.a, self.kind, self.name = a, kind, name
        self.template_hash = "none"
        self.eos = None
        self.said = set()
        self.exact = os.path.isfile(a.source) and prep.json_lines(a.source) is not None
        self.no_target, self.first_no_target = 0, None
        self.chat = kind in ("messages", "chat")
        if self.chat and (a.append_eos or a.no_special_tokens):
            raise prep.PrepareError("--append-eos and --no-special-tokens are for text and prompt rows: "
                                    "a chat template writes its special tokens itself")
        if not self.chat and a.chat_template:
            raise prep.PrepareError("--chat-template is for messages")
        auto = None
        try:
            auto = prep.load_auto(a.model)
        except prep.PrepareError as e:
            if self.chat or a.tokenizer_from == "auto":
                raise
            note(f"{e}; whether it would build the tokenizer that tokenizer.json says is not known")
        own = auto if a.tokenizer_from == "auto" else None
        self.encoder = prep.Encoder(a.model, special=not self.chat and not a.no_special_tokens, auto=own)
        if auto is not None:
            self.compare(auto)
        self.bos = None if a.no_special_tokens else self.encoder.bos
        if self.chat:
            self.chats = prep.Chats(a.model, a.chat_template, self.encoder, auto)
            self.template_hash = self.chats.hash
            return
        self.plain = prep.Encoder(a.model, special=False, auto=own) if kind == "prompt" else None
        if a.append_eos:
            self.eos = self.encoder.tok.token_to_id(a.append_eos)
            if self.eos is None:
                raise prep.PrepareError(f"--append-eos: the tokenizer has no token {a.append_eos!r}")

    def compare(self, auto):
        """tdgen reads tokenizer.json: which of two tokenizers made the rows is never left unsaid."""
        import transformers

        json_one = self.encoder if self.a.tokenizer_from == "json" else prep.Encoder(self.a.model, special=True)
        found = json_one.compared(auto)
        if not found:
            return
        used = ("tokenizer.json is used, as tdgen does (--tokenizer-from auto takes transformers')"
                if self.a.tokenizer_from == "json" else
                "transformers' is used, as --tokenizer-from auto says: tdgen itself makes other ids of the same text")
        note(f"{self.a.model}: transformers {transformers.__version__} ({type(auto).__name__}) builds another tokenizer than "
             f"tokenizer.json says: {'; '.join(found)}. {used}")

    def once(self, key, text):
        if key not in self.said:
            self.said.add(key)
            note(text)

    def look(self, row, extras):
        """What a template is not given, or makes nothing of, is said once."""
        unread, unused = self.chats.overlooked(row, self.name)
        for name in unread:
            if row[name] is not None:
                self.once(name, f"column {name}: {self.chats.where} reads a variable of that name, and it is not handed to "
                                "it; what the template shall have belongs into the column chat_template_kwargs")
        for name in unused:
            self.once(name, f"column {name}: {self.chats.where} reads no such variable, so that it changes nothing")
        if not self.exact and prep.has_null(extras):
            self.once("null", "column tools, documents or chat_template_kwargs: a null within an object is rendered as null. "
                              "Where Arrow filled it in, as rows differ in shape, keep the column as JSON text")

    def __call__(self, row, number):
        ids, mask = self.convert(row)
        if self.bos is not None and ids[:2] == [self.bos] * 2:
            self.once("bos", f"row {number} begins with two BOS tokens (id {self.bos}): its text has the one that the "
                             "tokenizer adds" + ("" if self.chat else " (--no-special-tokens leaves that out)"))
        if self.chat and self.bos is not None and ids[:1] != [self.bos]:
            self.once("nobos", f"row {number} does not begin with the BOS token (id {self.bos}) that the tokenizer adds to "
                               f"texts: {self.chats.where} does not write it. If the model was trained so, all is well")
        if not any(mask[1:]):
            self.no_target += 1
            self.first_no_target = number if self.first_no_target is None else self.first_no_target
        return ids, mask

    def convert(self, row):
        if self.kind == "messages":
            extras = prep.extras_of(row)
            self.look(row, extras)
            return self.chats.convert(prep.to_messages(row.get(self.name)), extras)
        if self.kind == "chat":
            extras = prep.extras_of(row)
            self.look(row, extras)
            prompt, rest = (prep.to_messages(row.get(name)) for name in (self.a.prompt_field, self.a.completion_field))
            return self.chats.convert(prompt + rest, extras, first=len(prompt))
        names = [self.name] if self.kind == "text" else [self.a.prompt_field, self.a.completion_field]
        for name in names:
            if not isinstance(row.get(name), str):
                raise prep.PrepareError(f"{name} is {type(row.get(name)).__name__}, expected a text")
        ids = self.encoder.encode(row[names[0]])
        mask = [1] * len(ids)
        if self.kind == "prompt":
            rest = self.plain.encode(row[names[1]])
            mask = [0] * len(ids) + [1] * len(rest)
            ids = ids + rest
        if self.eos is not None and (not ids or ids[-1] != self.eos):
            ids, mask = ids + [self.eos], mask + [1]
        return ids, mask


def convert_all(a, rows, n_rows, out):
    from tqdm import tqdm

    if a.max_rows:
        n_rows = min(a.max_rows, n_rows) if n_rows is not None else None
    convert, n_bad, kind = None, 0, None
    with tqdm(total=n_rows, unit=" rows", smoothing=0.05, disable=True if a.quiet else None) as bar:
        for i, row in enumerate(rows):
            if a.max_rows and i >= a.max_rows:
                break
            if convert is None:
                kind, name = choose_fields(a, row)
                if kind == "prompt" and isinstance(row[a.prompt_field], (list, tuple)):
                    kind = "chat"
                convert = Converter(a, kind, name)
            try:
                ids, mask = convert(row, i)
            except prep.PrepareError as e:
                if a.on_bad_row == "fail":
                    raise prep.PrepareError(f"row {i}: {e} (--on-bad-row skip leaves such rows out)") from e
                n_bad += 1
                if n_bad <= BAD_ROWS_LISTED:
                    tqdm.write(f"left out: row {i}: {e}", file=sys.stderr)
            else:
                out.add(ids, mask)
            bar.update()
            if i % 256 == 0:
                bar.set_postfix_str(f"{out.n_tokens / 1e6:.1f}M tokens", refresh=False)
    if out.n_rows == 0:
        raise prep.PrepareError(f"{a.source}: " + (f"all {n_bad} rows were left out" if n_bad else "there are no rows"))
    if convert.no_target:
        note(f"{convert.no_target} of {out.n_rows} rows have not a single target (the first is row "
             f"{convert.first_no_target}): nothing will be recorded of them")
    return convert, kind, n_bad


def main(argv=None):
    a = arguments(argv)
    try:
        import datasets
        import jinja2  # noqa: F401
        import numpy  # noqa: F401
        import tokenizers
        import tqdm  # noqa: F401
        import transformers
        import xxhash  # noqa: F401
    except ImportError as e:
        print(f"tdgen-prepare: {e}; it needs: pip install transformers tokenizers datasets pyarrow "
              "jinja2 numpy tqdm xxhash", file=sys.stderr)
        return 2
    datasets.disable_progress_bars()
    out = None
    try:
        rows, n_rows = prep.open_source(a.source, a.split)
        out = prep.TokenFile(a.out, a.overwrite)
        convert, kind, n_bad = convert_all(a, rows, n_rows, out)
        out.close({
            "format": "tdgen-tokens/1",
            "tokenizer_hash": convert.encoder.hash,
            "tokenizer_from": a.tokenizer_from,
            "template_hash": convert.template_hash,
            "n_vocab": convert.encoder.n_vocab,
            "rows": kind,
            "source": os.path.basename(os.path.normpath(a.source)),
            "split": a.split,
            "n_rows": out.n_rows,
            "n_bad_rows": n_bad,
            "n_tokens": out.n_tokens,
            "n_targets": out.n_targets,
            "made_with": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
                         f"datasets {datasets.__version__}",
        })
    except prep.PrepareError as e:
        print(f"tdgen-prepare: {e}", file=sys.stderr)
        return 4
    except (OSError, ValueError) as e:  # what the libraries say of unreadable files
        print(f"tdgen-prepare: {a.source}: {e}", file=sys.stderr)
        return 4
    finally:
        if out:
            out.abandon()
    left_out = f", {n_bad} rows left out" if n_bad else ""
    print(f"{a.out}: {out.n_rows} rows, {out.n_tokens} tokens, {out.n_targets} targets{left_out}")
    return 7 if n_bad else 0
