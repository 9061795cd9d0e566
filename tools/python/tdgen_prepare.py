"""tdgen_prepare - what tools/prepare is made of: sources, chats, and the token file.

Text becomes ids through the folder's own tokenizer.json (the `tokenizers` library, no post-processing
by transformers), so that they are the ids that tdgen itself would make. Chat templates are rendered by
transformers.

The token file (safetensors, https://huggingface.co/docs/safetensors):
  sample_offsets  I64 [rows + 1]   row i = input_ids[sample_offsets[i] : sample_offsets[i + 1]]
  input_ids       I32 [tokens]     all rows end to end
  loss_mask       U8  [tokens]     1 where the token is a training target
  __metadata__    tokenizer_hash (xxh3-64 of tokenizer.json's bytes), template_hash, n_vocab, source...
"""

import json
import os
import re
import shutil
import struct
import tempfile

MARK = "\u2603tdgen\u2603"  # put into a message to find where the template puts its text
ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant",
    "system": "system", "tool": "tool", "function": "tool", "observation": "tool",
}


class PrepareError(Exception):
    """Something the user can act on; a row's own when raised while that row is converted."""


def hash_hex(data):
    import xxhash

    return f"{xxhash.xxh3_64_intdigest(data):016x}"


# ---- sources ----


def open_source(path, split):
    """Rows of a dataset on disk, one after another: (iterable of dicts, number of rows or None)."""
    import datasets

    if not os.path.exists(path):
        raise PrepareError(
            f"{path} is not there; sources are on disk (a set of the hub is fetched with: "
            "hf download --repo-type dataset NAME --local-dir FOLDER)"
        )
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, f)) for f in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(path)  # memory-mapped
            if isinstance(rows, datasets.DatasetDict):
                rows = _pick_split(rows, split, path)
            return rows, len(rows)
        found = datasets.load_dataset(path, streaming=True)
        return _pick_split(found, split, path), None
    kind = _file_kind(path)
    rows = datasets.load_dataset(kind, data_files=path, split="train", streaming=True)
    n_rows = None
    if kind == "parquet":
        import pyarrow.parquet

        n_rows = pyarrow.parquet.read_metadata(path).num_rows
    return rows, n_rows


def _pick_split(found, split, path):
    if split in found:
        return found[split]
    if len(found) == 1 and split == "train":
        return next(iter(found.values()))
    raise PrepareError(f"{path} has no split {split}; --split is one of: {', '.join(found)}")


def _file_kind(path):
    name = path.lower()
    for packed in (".gz", ".zst", ".bz2", ".xz"):
        name = name.removesuffix(packed)
    kinds = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json",
             ".ndjson": "json", ".csv": "csv", ".txt": "text"}
    for suffix, kind in kinds.items():
        if name.endswith(suffix):
            return kind
    raise PrepareError(f"{path}: what is it? Known are {' '.join(kinds)} and folders")


# ---- messages ----


def to_messages(value):
    """role/content or from/value messages to the former; refuses what is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise PrepareError("the messages are a text that is no JSON") from None
    if not isinstance(value, (list, tuple)) or not value:
        raise PrepareError("expected a list of messages that is not empty")
    out = []
    for i, m in enumerate(value):
        if not isinstance(m, dict):
            raise PrepareError(f"message {i} is no object")
        m = {k: v for k, v in m.items() if v is not None}  # columns fill with null what is not there
        if "role" not in m and "from" in m:
            role = ROLES.get(str(m["from"]).lower())
            if role is None:
                raise PrepareError(
                    f"message {i}: from = {m['from']!r} is none of {', '.join(sorted(ROLES))}"
                )
            m["role"] = role
            m["content"] = m.pop("value", m.get("content"))
            del m["from"]
        if "role" not in m:
            raise PrepareError(f"message {i} has neither role nor from: {sorted(m)}")
        if not isinstance(m.get("content", ""), str):
            raise PrepareError(f"message {i}: content is no text (several parts are not supported)")
        out.append(m)
    return out


class Chats:
    """Renders conversations and finds what the assistant says in them.

    With {% generation %} in the template its own marks count. Else the span of an assistant's turn is
    what the messages up to it render to, beyond the generation prompt (the messages before it, with
    add_generation_prompt). Some templates render a turn otherwise once more follows: then its text is
    searched with a mark, and the turn ends behind what follows the text both there and at the end of
    a conversation (the end-of-turn tokens). Where these do not agree, or a token lies across the
    border, the row is refused: a mask is never guessed.
    """

    def __init__(self, model_dir, template_file=None):
        import transformers

        try:
            self.tok = transformers.AutoTokenizer.from_pretrained(model_dir)
        except Exception as e:
            raise PrepareError(f"{model_dir}: transformers cannot load the tokenizer: {e}") from e
        if template_file:
            with open(template_file, encoding="utf-8") as f:
                self.template = f.read()
        else:
            self.template = self.tok.chat_template
            if isinstance(self.template, dict):
                self.template = self.template.get("default")
        if not self.template:
            raise PrepareError(
                f"{model_dir} has no chat template (tokenizer_config.json or chat_template.jinja): "
                "a base model? Name one with --chat-template FILE"
            )
        self.marked = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.template) is not None
        self.encoder = Encoder(model_dir, special=False)

    def render(self, messages, prompt=False):
        try:
            return self.tok.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as e:  # jinja's errors and the template's own raise_exception
            raise PrepareError(f"the chat template refuses the messages: {e}") from e

    def convert(self, messages):
        """(ids, mask) of one conversation."""
        if self.marked:
            text, spans = self._marked_spans(messages)
        else:
            text = self.render(messages)
            spans = [self._span(messages, i, text) for i, m in enumerate(messages)
                     if m["role"] == "assistant"]
        ids, offsets = self.encoder.encode_with_offsets(text)
        return ids, self._mask(text, offsets, spans)

    def _marked_spans(self, messages):
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                [messages], chat_template=self.template, return_assistant_tokens_mask=True,
                **self.tok.special_tokens_map,
            )
        except Exception as e:
            raise PrepareError(f"the chat template refuses the messages: {e}") from e
        return texts[0], [tuple(span) for span in marks[0]]

    def _span(self, messages, i, text):
        """Characters [begin, end) of message i, an assistant's, in `text`, the whole conversation."""
        where = f"message {i} (assistant)"
        prompt = self.render(messages[:i], prompt=True) if i else ""
        if prompt and text.startswith(prompt):
            # Most templates: what is there with the turn, and not before it, is the turn.
            until = text if i + 1 == len(messages) else self.render(messages[: i + 1])
            if until.startswith(prompt) and text.startswith(until):
                return len(prompt), len(until)
        content = messages[i].get("content", "")
        if not content.strip():
            raise PrepareError(f"{where} has no text; its place in the template is ambiguous")
        first, last = self._content(messages, i, text, where)
        if i == 0:  # nothing prompts it: its text and what ends it
            return first, last + self._turn_end(messages, i, text[last:], where)
        begin = len(os.path.commonprefix([prompt, text]))
        if begin < len(prompt):  # a prompt that goes on where the conversation has the text
            begin = min(begin, first)
        if begin > last or (begin < len(prompt) and text[begin:first].strip()):
            raise PrepareError(
                f"{where}: the generation prompt goes on with {prompt[begin:][:60]!r} where the "
                f"conversation has {text[begin:][:60]!r}: where the turn begins is ambiguous (a "
                "template with {% generation %} marks says it: --chat-template)"
            )
        return begin, last + self._turn_end(messages, i, text[last:], where)

    def _content(self, messages, i, text, where):
        """Where message i's text lies: a mark is rendered at its front, and at its end."""
        content = messages[i]["content"]

        def with_content(value):
            changed = list(messages)
            changed[i] = {**messages[i], "content": value}
            return self.render(changed).partition(MARK)

        before, found, rest = with_content(MARK + content.lstrip())
        body, found2, after = with_content(content.rstrip() + MARK)
        first, last = len(before), len(text) - len(after)
        if (not found or not found2 or MARK in rest or first > last or not text.endswith(after)
                or before.rstrip() != text[:first].rstrip()
                or body.rstrip() != text[:last].rstrip()):
            raise PrepareError(f"{where}: the template changes its text: its place is ambiguous")
        return first, last

    def _turn_end(self, messages, i, tail, where):
        """Characters of `tail`, the text behind message i's, that end the turn."""
        if i + 1 == len(messages):
            return len(tail)
        alone = messages[:i] + [{**messages[i], "content": messages[i]["content"].rstrip() + MARK}]
        final = self.render(alone).partition(MARK)[2]
        if tail.startswith(final):
            return len(final)
        a, _ = self.encoder.encode_with_offsets(final)
        b, offsets = self.encoder.encode_with_offsets(tail)
        n = len(os.path.commonprefix([a, b]))
        if n == 0:
            raise PrepareError(
                f"{where}: its turn ends in {tail[:40]!r} here and in {final[:40]!r} at the end of a "
                "conversation: where it ends is ambiguous (a template with {% generation %} marks "
                "says it: --chat-template)"
            )
        return offsets[n - 1][1]

    def _mask(self, text, offsets, spans):
        mask = [0] * len(offsets)
        at = 0
        for begin, end in spans:
            while at < len(offsets) and offsets[at][1] <= begin and offsets[at][0] < begin:
                at += 1
            while at < len(offsets) and offsets[at][0] < end:
                s, e = offsets[at]
                outside = text[s:begin] + text[end:e]
                if outside.strip() and not self.marked:
                    raise PrepareError(
                        f"the token {text[s:e]!r} lies across the border of an assistant's turn: "
                        "whether it is a target is ambiguous"
                    )
                mask[at] = 1
                at += 1
        return mask


class Encoder:
    """tokenizer.json as it stands."""

    def __init__(self, model_dir, special):
        from tokenizers import Tokenizer

        path = os.path.join(model_dir, "tokenizer.json")
        try:
            with open(path, "rb") as f:
                data = f.read()
            parsed = json.loads(data)
        except (OSError, ValueError) as e:
            raise PrepareError(f"cannot read the tokenizer {path}: {e}") from e
        self.hash = hash_hex(data)
        parsed["truncation"] = parsed["padding"] = None
        if not special:
            # What it adds are special tokens only; but it also cuts blanks off the offsets.
            parsed["post_processor"] = None
        self.tok = Tokenizer.from_str(json.dumps(parsed))
        self.special = special
        self.n_vocab = 1 + max(self.tok.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=self.special).ids

    def encode_with_offsets(self, text):
        e = self.tok.encode(text, add_special_tokens=self.special)
        return e.ids, e.offsets


# ---- the token file ----


class TokenFile:
    """Writes rows as they come; memory does not grow. The file is there when close() returned."""

    def __init__(self, path):
        import numpy

        self.np = numpy
        self.path = path
        self.n_rows = self.n_tokens = self.n_targets = 0
        folder = os.path.dirname(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        self.parts = [tempfile.TemporaryFile(dir=folder) for _ in range(3)]
        self.parts[0].write(struct.pack("<q", 0))

    def add(self, ids, mask):
        np = self.np
        self.n_rows += 1
        self.n_tokens += len(ids)
        self.n_targets += sum(mask)
        self.parts[0].write(struct.pack("<q", self.n_tokens))
        self.parts[1].write(np.asarray(ids, dtype="<i4").tobytes())
        self.parts[2].write(bytes(mask))

    def close(self, metadata):
        header, at = {"__metadata__": {k: str(v) for k, v in metadata.items()}}, 0
        for name, dtype, size, n in (("sample_offsets", "I64", 8, self.n_rows + 1),
                                     ("input_ids", "I32", 4, self.n_tokens),
                                     ("loss_mask", "U8", 1, self.n_tokens)):
            header[name] = {"dtype": dtype, "shape": [n], "data_offsets": [at, at + n * size]}
            at += n * size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        tmp = f"{self.path}.tmp"
        try:
            with open(tmp, "wb") as out:
                out.write(struct.pack("<Q", len(text)) + text)
                for part in self.parts:
                    part.seek(0)
                    shutil.copyfileobj(part, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
            os.replace(tmp, self.path)
        finally:
            if os.path.exists(tmp):
                os.remove(tmp)
            self.abandon()

    def abandon(self):
        for part in self.parts:
            part.close()  # they have no name: nothing is left
