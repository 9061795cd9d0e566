"""What tdgen-prepare is made of: sources, chats, and the token file.

Text becomes ids through the folder's own tokenizer.json (the `tokenizers` library, no post-processing
by transformers), so that they are the ids that tdgen itself would make; where transformers would build
another tokenizer, that is said (tdgen.tokenizer). Chat templates are rendered by transformers, in its
sandbox. A folder's own code is never run.

The token file (safetensors, https://huggingface.co/docs/safetensors):
  sample_offsets  I64 [rows + 1]   row i = input_ids[sample_offsets[i] : sample_offsets[i + 1]]
  input_ids       I32 [tokens]     all rows end to end
  loss_mask       U8  [tokens]     1 where the token is a training target
  __metadata__    tokenizer_hash (tdgen.tokenizer.content_hash), template_hash, n_vocab, source...
"""

import json
import os
import re
import shutil
import signal
import struct
import tempfile
import threading

from .trust import read_bounded
from .tokenizer import content_hash, differences

MAX_TOKENIZER = 1 << 30
RENDER_SECONDS = 60  # no conversation takes so long; a template that counts to the end of time does
# What apply_chat_template takes itself, and prepare decides.
OWN_ARGUMENTS = ("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
                 "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
                 "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens")
TEMPLATE_COLUMNS = ("tools", "documents", "chat_template_kwargs")

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
    try:
        rows, n_rows = _open_source(path, split)
    except (PrepareError, OSError):
        raise
    except Exception as e:  # what the libraries say of a folder that is none
        raise PrepareError(f"{path}: {e}") from e
    return _named(rows, path), n_rows


def _named(rows, path):
    try:
        yield from rows
    except (PrepareError, OSError):
        raise
    except Exception as e:
        raise PrepareError(f"{path}: {e.__cause__ or e}") from e


def _open_source(path, split):
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
    if kind == "json":
        lines = json_lines(path)
        if lines is not None:
            return lines, None
    tabs = {"sep": "\t"} if re.search(r"\.(tsv|tab)(\.\w+)?$", path.lower()) else {}
    rows = datasets.load_dataset(kind, data_files=path, split="train", streaming=True, **tabs)
    n_rows = None
    if kind == "parquet":
        import pyarrow.parquet

        n_rows = pyarrow.parquet.read_metadata(path).num_rows
    return rows, n_rows


def json_lines(path):
    """Rows of a file of JSON lines, each exactly what its line says: in a column of Arrow's, objects of different shape
    (tools!) get each other's keys with nulls. None where it is no such file, or packed as only datasets can unpack."""
    import bz2
    import gzip
    import io
    import lzma

    name = path.lower()
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener = next((f for suffix, f in openers.items() if name.endswith(suffix)), None if name.endswith(".zst") else open)
    if opener is None:
        try:
            import zstandard
        except ImportError:
            return None

        def opener(path, mode):
            unpacked = zstandard.ZstdDecompressor().stream_reader(open(path, mode), read_across_frames=True)  # closes it
            return io.BufferedReader(unpacked)
    with opener(path, "rb") as f:
        begin = f.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if begin != b"{":
        return None  # one array
    try:
        with opener(path, "rb") as f:
            first = json.loads(f.readline())
    except ValueError:
        return None  # an object over several lines

    def rows():
        with opener(path, "rb") as f:
            for i, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as e:
                    raise PrepareError(f"{path}, line {i}: {e}") from None
                if not isinstance(row, dict):
                    raise PrepareError(f"{path}, line {i}: expected a JSON object")
                yield row

    return rows() if isinstance(first, dict) else None


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
             ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "text"}
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
            if "value" in m:
                m["content"] = m.pop("value")
            del m["from"]
        if "role" not in m:
            raise PrepareError(f"message {i} has neither role nor from: {sorted(m)}")
        if not isinstance(m.get("content", ""), str):
            raise PrepareError(f"message {i}: content is no text (several parts are not supported)")
        out.append(m)
    return out


def load_auto(model_dir):
    """transformers' tokenizer of a folder: from its files alone, and none of its code."""
    import transformers

    for entry in os.scandir(model_dir):  # nothing that would block whoever opens it
        if entry.name.endswith((".json", ".jinja", ".model", ".txt")) and not entry.is_file():
            raise PrepareError(f"{entry.path} is no regular file")
    try:
        return transformers.AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":  # Rust's, of no class of Exception
            raise
        raise PrepareError(f"{model_dir}: transformers cannot load the tokenizer: {str(e).strip()[:800]}") from None


def extras_of(row):
    """What a row says to the template beside its messages: arguments of apply_chat_template."""
    out = {}
    for name, kind in (("tools", list), ("documents", list), ("chat_template_kwargs", dict)):
        value = row.get(name)
        if isinstance(value, str):  # JSON within a text: what Arrow has no other type for
            try:
                value = json.loads(value) if value.strip() else None
            except ValueError:
                raise PrepareError(f"{name} is a text that is no JSON") from None
        if value is not None and not isinstance(value, kind):
            raise PrepareError(f"{name} is {type(value).__name__}, expected {'a list' if kind is list else 'an object'}")
        out[name] = value
    more = {**(out.pop("chat_template_kwargs") or {})}
    if more.get("add_generation_prompt") is False:  # as it is anyway
        del more["add_generation_prompt"]
    own = sorted(set(more) & set(OWN_ARGUMENTS))
    if own:
        raise PrepareError(f"chat_template_kwargs has {', '.join(own)}, which is no variable of the template: a column of "
                           "its own, or prepare's to decide")
    return {**out, **more}


def has_null(value):
    """Is there a null within an object, as Arrow fills in where rows of one column differ in shape?"""
    if isinstance(value, dict):
        return any(v is None or has_null(v) for v in value.values())
    return isinstance(value, (list, tuple)) and any(map(has_null, value))


class Chats:
    """Renders conversations and finds what the assistant says in them.

    With {% generation %} in the template its own marks count. Else the span of an assistant's turn is
    what the messages up to it render to, beyond the generation prompt (the messages before it, with
    add_generation_prompt). Some templates render a turn otherwise once more follows: then its text is
    searched with a mark, and the turn ends behind what follows the text both there and at the end of
    a conversation (the end-of-turn tokens). Where these do not agree, or a token lies across the
    border, the row is refused: a mask is never guessed.
    """

    def __init__(self, model_dir, template_file=None, encoder=None, auto=None):
        self.tok = auto or load_auto(model_dir)
        self.where = template_file or f"{model_dir}'s chat template"
        if template_file:
            with open(template_file, encoding="utf-8") as f:
                found = f.read()
        else:
            found = self.tok.chat_template
        # Of several by name, transformers takes "tool_use" where there are tools.
        self.templates = found if isinstance(found, dict) else {"default": found}
        self.default = self.templates.get("default")
        if not self.default:
            raise PrepareError(
                f"{model_dir} has no chat template (tokenizer_config.json or chat_template.jinja): "
                "a base model? Name one with --chat-template FILE"
            )
        self.hash = hash_hex(self.default.encode() if set(self.templates) <= {"default"} else
                             json.dumps(self.templates, sort_keys=True).encode())
        self.variables = set().union(*map(self._variables, self.templates.values()))
        self.encoder = encoder or Encoder(model_dir, special=False)
        self._use({})

    def _variables(self, template):
        """Names that a template reads and does not set itself."""
        import jinja2.meta
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            return jinja2.meta.find_undeclared_variables(_compile_jinja_template(template).environment.parse(template))
        except Exception as e:
            raise PrepareError(f"{self.where} cannot be read: {e}") from e

    def _use(self, extras):
        """extras: tools, documents and variables of the row at hand."""
        self.extras = extras
        tools = extras.get("tools") is not None and "tool_use" in self.templates
        self.template = self.templates["tool_use" if tools else "default"]
        self.marked = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.template) is not None

    def overlooked(self, row, field):
        """Columns that the template has a variable for and that are not handed to it; and the other way round."""
        return [name for name in row if name in self.variables and name not in (field, "messages", *TEMPLATE_COLUMNS)], [
            name for name in ("tools", "documents") if row.get(name) and name not in self.variables]

    def _render(self, call):
        """What the call gives; an error of the template's, whatever it is, names the template."""
        timed = threading.current_thread() is threading.main_thread()
        if timed:
            old = signal.signal(signal.SIGALRM, _too_slow)
            signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS)
        try:
            return call()
        except Exception as e:  # jinja's errors and the template's own raise_exception
            raise PrepareError(f"{self.where} refuses the messages: {type(e).__name__}: {e}") from e
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, old)

    def render(self, messages, prompt=False):
        return self._render(lambda: self.tok.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=prompt, **self.extras))

    def convert(self, messages, extras=None, first=0):
        """(ids, mask) of one conversation; extras as extras_of() has them. Turns before message `first` are no targets."""
        self._use(extras or {})
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if self.marked:
            text, spans = self._marked_spans(messages)
            if first and len(spans) != len(turns):
                raise PrepareError("the template marks another number of turns than the assistant has: which of them the "
                                   "completion is cannot be told")
            spans = [span for i, span in zip(turns, spans) if i >= first] if first else spans
        else:
            text = self.render(messages)
            spans = [self._span(messages, i, text) for i in turns if i >= first]
        ids, offsets = self.encoder.encode_with_offsets(text)
        return ids, self._mask(text, offsets, spans)

    def _marked_spans(self, messages):
        from transformers.utils.chat_template_utils import render_jinja_template

        # As apply_chat_template calls it, whose own way to the marks gives ids of transformers' tokenizer.
        texts, marks = self._render(lambda: render_jinja_template(
            [messages], chat_template=self.template, return_assistant_tokens_mask=True,
            **{**self.tok.special_tokens_map, **self.extras}))
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
        if not content.strip() and messages[i].get("tool_calls") and prompt and text.startswith(prompt):
            return len(prompt), len(prompt) + self._calls_end(messages, i, prompt, text[len(prompt) :], where)
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

    def _calls_end(self, messages, i, prompt, tail, where):
        """Characters of `tail`, what follows the prompt of message i, that are its turn: tool calls without a text.

        At the end of a conversation the turn is something that does not depend on it (such as an empty <think>
        block), and then what the conversation has here."""
        def alone(message):
            out = self.render(messages[:i] + [message])
            return out[len(prompt) :] if out.startswith(prompt) else None

        final = alone(messages[i])
        other = alone({**messages[i], "tool_calls": json.loads(json.dumps(messages[i]["tool_calls"]).replace(
            '"name": "', '"name": "' + MARK))})
        if final and other and MARK in other:
            before = len(os.path.commonprefix([final, other]))
            for skip in range(before + 1):
                if final[skip:] and tail.startswith(final[skip:]):
                    return len(final) - skip
        raise PrepareError(f"{where} has tool calls and no text, and is another thing at the end of a conversation: its "
                           "place in the template is ambiguous (a template with {% generation %} marks says it: "
                           "--chat-template)")

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


def _too_slow(*_):
    raise TimeoutError(f"not done within {RENDER_SECONDS} s")


def added_bos(tokenizer):
    """The token that a tokenizer.json, parsed, puts in front of every text by itself, or None."""
    step = tokenizer.get("post_processor") or {}
    for part in step.get("processors", [step]):
        if part.get("type") == "TemplateProcessing" and part["single"] and "SpecialToken" in part["single"][0]:
            return part["special_tokens"][part["single"][0]["SpecialToken"]["id"]]["ids"][0]
        if part.get("type") in ("BertProcessing", "RobertaProcessing"):
            return part["cls"][1]
    return None


class Encoder:
    """tokenizer.json as it stands, or with `auto`, a tokenizer of transformers', as that has it."""

    def __init__(self, model_dir, special, auto=None):
        from tokenizers import Tokenizer

        path = os.path.join(model_dir, "tokenizer.json")
        try:
            data = read_bounded(path, MAX_TOKENIZER)
            self.hash = content_hash(data)
            if auto is not None and not hasattr(auto, "backend_tokenizer"):
                raise PrepareError(f"{model_dir}: transformers' {type(auto).__name__} is not of the tokenizers library: "
                                   "--tokenizer-from json")
            parsed = json.loads(data if auto is None else auto.backend_tokenizer.to_str())
            parsed["truncation"] = parsed["padding"] = None
            self.text = json.dumps(parsed)
            self.bos = added_bos(parsed)
            if not special:
                # What it adds are special tokens only; but it also cuts blanks off the offsets.
                parsed["post_processor"] = None
            self.tok = Tokenizer.from_str(json.dumps(parsed))
        except PrepareError:
            raise
        except BaseException as e:
            if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
                raise
            raise PrepareError(f"cannot read the tokenizer {path}: {e}") from None
        self.special = special
        self.n_vocab = 1 + max(self.tok.get_vocab(with_added_tokens=True).values(), default=-1)

    def compared(self, auto):
        """Where transformers' tokenizer is another one: a text for each part that differs."""
        if not hasattr(auto, "backend_tokenizer"):
            return ["one that is not of the tokenizers library, part by part not to be compared"]
        return differences(json.loads(auto.backend_tokenizer.to_str()), json.loads(self.text))

    def encode(self, text):
        return self._encode(text).ids

    def _encode(self, text):
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise PrepareError(f"the text has half of a surrogate pair, \\u{ord(text[e.start]):04x}") from None
        return self.tok.encode(text, add_special_tokens=self.special)

    def encode_with_offsets(self, text):
        e = self._encode(text)
        return e.ids, e.offsets


# ---- the token file ----


class TokenFile:
    """Writes rows as they come; memory does not grow. The file is there when close() returned."""

    def __init__(self, path, overwrite=False):
        import numpy

        if os.path.lexists(path) and not overwrite:
            raise PrepareError(f"{path} is there already: --overwrite replaces it")
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
