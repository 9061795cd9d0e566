#!/usr/bin/env python3
"""tools/prepare: what a row says to its chat template, against transformers' own apply_chat_template; two tokenizers
of one folder; and folders that were made to do harm. ($TDGEN or build/release/src/tdgen.)"""

import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time

from test_prepare import PREPARE, ROOT, SHARED, TEACHER, prep, prepare, targets, decoder, write

import datasets
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

CASES = os.path.join(os.path.dirname(SHARED), "cases")
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "w", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]}}}
TIME = {"type": "function", "function": {"name": "now", "description": "<the time>", "parameters": {
    "type": "object", "properties": {"zone": {"type": "integer", "enum": [1, 2]}}}}}
CHATS = [
    [("user", "weather?"), ("assistant", "It is 21.")],
    [("system", "Be short."), ("user", "a"), ("assistant", "b"), ("user", "Größe 你好 🦙?"), ("assistant", "Yes.\n\n1 < 2")],
]


def rows_of(path):
    t = load_file(path)
    return [t["input_ids"][a:b].tolist() for a, b in zip(t["sample_offsets"], t["sample_offsets"][1:])]


def chat(pairs):
    return [{"role": r, "content": c} for r, c in pairs]


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def check_extras(d):
    """Rendered and tokenised as transformers itself does it, whatever the row says and however it lies on disk."""
    folder = os.path.join(SHARED, "tokenizers", "qwen3")
    if not os.path.exists(folder):
        print("SKIPPED: ../shared is absent: tools and template variables were tried with our own template only")
        return
    tok = transformers.AutoTokenizer.from_pretrained(folder)
    load_auto, prep.load_auto = prep.load_auto, lambda path: tok if path == folder else load_auto(path)  # once: it takes seconds
    try:
        check_extras_of(d, folder, tok)
    finally:
        prep.load_auto = load_auto


def check_extras_of(d, folder, tok):
    encoder = prep.Encoder(folder, special=False)
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
        "name": "get_weather", "arguments": {"city": "Paris", "unit": None}}}]}
    answer = [{"role": "user", "content": "Paris?"}, call, {"role": "tool", "content": "21"},
              {"role": "assistant", "content": "It is 21."}]
    rows = []
    for messages in [*map(chat, CHATS), answer]:
        for tools in (None, [], [WEATHER], [WEATHER, TIME]):
            for more in (None, {}, {"enable_thinking": False}, {"enable_thinking": True, "anything": [1, {"a": 2}]}):
                if messages is answer and more and more["enable_thinking"] is False:
                    continue  # the prompt has a <think> block that the conversation has not: refused
                rows.append({"messages": messages, "tools": tools, "chat_template_kwargs": more})
    want = [tok.apply_chat_template(r["messages"], tools=r["tools"], return_dict=True,
                                    **(r["chat_template_kwargs"] or {}))["input_ids"] for r in rows]
    assert len({tuple(x) for x in want}) == 9  # thinking is of this template's generation prompt: see below
    common = ("--model", folder, "--out", f"{d}/x.safetensors")
    prepare(*common, jsonl(f"{d}/extras.jsonl", rows), says=f"{len(rows)} rows")
    assert rows_of(f"{d}/x.safetensors") == want
    import zstandard

    for suffix, packed in ((".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.ZstdCompressor().compress)):
        with open(f"{d}/extras.jsonl", "rb") as f, open(f"{d}/packed.jsonl{suffix}", "wb") as g:
            g.write(packed(f.read()))
        prepare(*common, "--max-rows", 20, f"{d}/packed.jsonl{suffix}")
        assert rows_of(f"{d}/x.safetensors") == want[:20]
    # As JSON within texts, which is what Arrow has no type for; and a whole dataset on disk.
    texts = [{k: v if k == "messages" else v if v is None else json.dumps(v) for k, v in r.items()} for r in rows]
    prepare(*common, jsonl(f"{d}/texts.jsonl", texts))
    assert rows_of(f"{d}/x.safetensors") == want
    datasets.load_dataset("json", data_files=f"{d}/texts.jsonl", split="train").to_parquet(f"{d}/texts.parquet")
    prepare(*common, f"{d}/texts.parquet")
    assert rows_of(f"{d}/x.safetensors") == want
    # The targets are what the assistant says, and nothing of the tools.
    t, decode = load_file(f"{d}/x.safetensors"), decoder(folder)
    for i, r in enumerate(rows):
        said = targets(t, i, decode)
        assert len(said) == sum(m["role"] == "assistant" for m in r["messages"]), (i, said)
        assert "<tools>" not in "".join(said)
        # What the prompt already holds, here a closed <think>, is not said by the assistant.
        off = (r["chat_template_kwargs"] or {}).get("enable_thinking") is False
        if r["messages"] == answer:  # a call without a text is a turn, and ends where it ends
            assert said[0].startswith("<tool_call>\n"), said
            assert json.loads(said[0].split("<tool_call>\n")[1].split("\n</tool_call>")[0]) == {
                "name": "get_weather", "arguments": {"city": "Paris", "unit": None}}
            assert said[0].endswith("</tool_call><|im_end|>\n") and said[1].endswith("It is 21.<|im_end|>\n"), said
        if r["messages"] == chat(CHATS[0]):
            assert said == [("" if off else "<think>\n\n</think>\n\n") + "It is 21.<|im_end|>\n"], (r, said)
    case = os.path.join(CASES, "13-tools-column-ignored", "rows.jsonl")
    prepare(*common, case)
    with open(case, encoding="utf-8") as f:
        row = json.loads(f.readline())
    assert rows_of(f"{d}/x.safetensors")[0] == tok.apply_chat_template(
        row["messages"], tools=row["tools"], return_dict=True)["input_ids"]
    assert "get_weather" in decode(rows_of(f"{d}/x.safetensors")[0])

    # Every template that people use.
    documents, n, differ = [{"title": "T", "text": "x < y"}], 0, 0
    for name in sorted(os.listdir(os.path.join(SHARED, "chat", "templates"))):
        file = os.path.join(SHARED, "chat", "templates", name)
        ours = prep.Chats(folder, file, encoder, auto=tok)
        for messages in map(chat, CHATS):
            for tools in (None, [WEATHER, TIME]):
                for more in ({}, {"enable_thinking": False}, {"thinking": True, "xml_tools": [WEATHER], "date_string": "x"}):
                    row = {"tools": tools, "documents": documents if n % 2 else None, "chat_template_kwargs": more}
                    n += 1
                    try:
                        want = tok.apply_chat_template(messages, chat_template=ours.template, tokenize=False, tools=tools,
                                                       documents=row["documents"], **more)
                    except Exception:
                        want = None
                    try:
                        bare = tok.apply_chat_template(messages, chat_template=ours.template, tokenize=False)
                    except Exception:
                        bare = None
                    ours._use(prep.extras_of(row))
                    try:
                        got = ours.render(messages)
                    except prep.PrepareError as e:
                        assert want is None and name in str(e), (name, str(e))
                        continue
                    assert got == want, (name, got, want)
                    differ += got != bare
    assert n > 200 and differ > 60, (n, differ)
    print(f"   {len(rows)} rows as transformers' ids; {n} of other templates, of which {differ} differ by tools or variables")


def check_columns(d):
    """What the template could read and is not given, or does not read, is named; once."""
    template = write(f"{d}/t.jinja", "{% set mine = 1 %}{{ persona }}{{ mine }}{{ style or '' }}{% for m in messages %}"
                                     "{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
                                     "{{ 'assistant:' if add_generation_prompt }}")
    rows = [{"messages": chat(CHATS[0]), "persona": "P", "mine": 3, "other": 4, "tools": [WEATHER],
             "chat_template_kwargs": {"style": "S"}}] * 3
    common = ("--model", TEACHER, "--chat-template", template, "--out", f"{d}/x.safetensors")
    said = prepare(*common, jsonl(f"{d}/columns.jsonl", rows))
    assert said.count("column persona") == 1 and "chat_template_kwargs" in said and "column other" not in said, said
    assert "column mine" not in said and said.count("column tools: ") == 1, said
    assert "a null within" not in said
    datasets.load_dataset("json", data_files=f"{d}/columns.jsonl", split="train").to_parquet(f"{d}/columns.parquet")
    assert prepare(*common, f"{d}/columns.parquet").count("a null within an object") == 1
    assert "S" in decoder(TEACHER)(rows_of(f"{d}/x.safetensors")[0])
    for more, says in (({"add_generation_prompt": True}, "add_generation_prompt"), ({"tokenize": False}, "tokenize"),
                       ("[", "no JSON"), ([1], "expected an object")):
        prepare(*common, jsonl(f"{d}/bad.jsonl", [{"messages": chat(CHATS[0]), "chat_template_kwargs": more}]), expect=4,
                says=says)
    # A line is what it says, whatever other lines have; what is none is named.
    def line(text, **how):
        with open(f"{d}/bad.jsonl", "w", encoding="utf-8") as f:
            f.write(json.dumps({"messages": chat(CHATS[0])}) + "\n\n" + text + "\n")
        return prepare(*common, f"{d}/bad.jsonl", **how)

    line('{"messages": [', expect=4, says="bad.jsonl, line 3")
    line("[1]", expect=4, says="bad.jsonl, line 3")
    line('{"other": 1}', expect=4, says="row 1: expected a list of messages")
    line('{"messages": [{"role": "user", "content": "\\ud800"}]}', expect=4, says="half of a surrogate pair")
    line('{"messages": [{"role": "user", "content": 3}]}', expect=4, says="row 1: message 0")
    # Two templates by name: with tools the one for tools, as transformers takes it.
    folder = f"{d}/named"
    shutil.copytree(TEACHER, folder)
    config = json.load(open(f"{folder}/tokenizer_config.json"))
    config["chat_template"] = [{"name": "default", "template": "plain{% for m in messages %}{{ m.content }}{% endfor %}"},
                               {"name": "tool_use", "template": "tools{% for m in messages %}{{ m.content }}{% endfor %}"}]
    json.dump(config, open(f"{folder}/tokenizer_config.json", "w"))
    tok = transformers.AutoTokenizer.from_pretrained(folder)
    exact = Tokenizer.from_file(f"{folder}/tokenizer.json")
    chats = prep.Chats(folder)
    for tools in (None, [WEATHER]):
        chats._use({"tools": tools})
        text = tok.apply_chat_template(chat(CHATS[0]), tools=tools, tokenize=False)
        assert chats.render(chat(CHATS[0])) == text and text.startswith("tools" if tools else "plain")
    assert exact


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ cycler.__init__.__globals__.os.system('touch HERE') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}{{ self.__init__.__globals__.__builtins__ }}",
    "{{ (messages|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ messages.append(1) }}",
    "{{ strftime_now.__globals__['os'] }}",
    "{% for i in range(10 ** 12) %}x{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ 'x' * 10 ** 15 }}",
    "{{ unclosed",
)


def check_hostile(d):
    """Nothing of a folder is run, and a template ends in an error that names it."""
    folder, mark = f"{d}/hostile", f"{d}/was-run"
    rows = jsonl(f"{d}/rows1.jsonl", [{"messages": chat(CHATS[0])}])
    code = f"open({mark!r}, 'w').close()\nclass Evil:\n    @classmethod\n    def from_pretrained(cls, *a, **k):\n        return cls()\n"
    for config_map in (False, True):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(TEACHER, folder)
        write(f"{folder}/evil.py", code)
        write(f"{folder}/hostile.py", code)  # a dataset script's name, too
        config = json.load(open(f"{folder}/tokenizer_config.json"))
        config.update(auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil",
                      chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
        json.dump(config, open(f"{folder}/tokenizer_config.json", "w"))
        if config_map:
            teacher = json.load(open(f"{folder}/config.json"))
            teacher.update(model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoTokenizer": "evil.Evil"})
            json.dump(teacher, open(f"{folder}/config.json", "w"))
        for more in ((), ("--tokenizer-from", "auto")):
            done = subprocess.run([sys.executable, os.path.join(ROOT, "tools", "prepare"), "--quiet", "--overwrite", "--model", folder, "--out",
                                   f"{d}/x.safetensors", *more, rows], capture_output=True, text=True, timeout=120,
                                  stdin=subprocess.DEVNULL, env={**os.environ, "HF_DATASETS_TRUST_REMOTE_CODE": "1"})
            assert not os.path.exists(mark), "the folder's code was run"
            assert done.returncode == 4 and folder in done.stderr and "Traceback" not in done.stderr, done
        # A text needs no template: the ids are tokenizer.json's, and the code is not run either.
        text = jsonl(f"{d}/text.jsonl", [{"text": "In the beginning"}])
        said = prepare("--model", folder, "--out", f"{d}/x.safetensors", text, says="is not known")
        assert not os.path.exists(mark) and folder in said
        exact = Tokenizer.from_file(f"{folder}/tokenizer.json")
        assert rows_of(f"{d}/x.safetensors") == [exact.encode("In the beginning").ids]
    # A folder of data with a script of its name.
    shutil.copy(rows, f"{folder}/data.jsonl")
    done = subprocess.run([sys.executable, os.path.join(ROOT, "tools", "prepare"), "--quiet", "--overwrite", "--model", TEACHER, "--out",
                           f"{d}/x.safetensors", folder], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert not os.path.exists(mark) and done.returncode == 4, done

    old, prep.RENDER_SECONDS = prep.RENDER_SECONDS, 1
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    for i, body in enumerate((*ESCAPES, slow)):
        file = write(f"{d}/escape{i}.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}" + body.replace("HERE", mark))
        begin = time.monotonic()
        said = prepare("--model", TEACHER, "--chat-template", file, "--out", f"{d}/x.safetensors", rows, expect=4, says=file)
        assert not os.path.exists(mark) and time.monotonic() - begin < 20, (body, said)
    prep.RENDER_SECONDS = old
    # The folder's own template is named by its folder; and the marks' way to render is in the sandbox as well.
    marked = write(f"{d}/marked.jinja", "{% generation %}{{ raise_exception.__globals__['json'] }}{% endgeneration %}")
    prepare("--model", TEACHER, "--chat-template", marked, "--out", f"{d}/x.safetensors", rows, expect=4, says=marked)
    config = json.load(open(os.path.join(TEACHER, "tokenizer_config.json")))
    shutil.rmtree(folder)
    shutil.copytree(TEACHER, folder)
    config["chat_template"] = ESCAPES[0]
    json.dump(config, open(f"{folder}/tokenizer_config.json", "w"))
    prepare("--model", folder, "--out", f"{d}/x.safetensors", rows, expect=4, says=folder)
    # Tokenizers that are none.
    for text in ("", "[]", '{"model": {"type": "BPE"}}', "{" * 100000, '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}}'):
        write(f"{folder}/tokenizer.json", text)
        prepare("--model", folder, "--out", f"{d}/x.safetensors", f"{d}/text.jsonl", expect=4, says=folder)
    os.remove(f"{folder}/tokenizer.json")
    os.mkfifo(f"{folder}/tokenizer.json")
    try:
        prep.Encoder(folder, special=False)
    except prep.PrepareError as e:
        assert "no regular file" in str(e)
    else:
        raise AssertionError("a FIFO was read")
    prepare("--model", folder, "--out", f"{d}/x.safetensors", rows, expect=4, says="no regular file")


def spiece(folder, cls, **config):
    """A tokenizer as Llama 2's is written, of a few tokens and all bytes."""
    os.makedirs(folder)
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "ab", "\u2581a", "\u2581ab"]
    added = [{"id": i, "content": vocab[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i in range(3)]
    data = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {
        "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None, "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                     {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}, "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(vocab)}, "merges": ["a b", "\u2581 a", "\u2581 ab"]}}
    json.dump(data, open(f"{folder}/tokenizer.json", "w"))
    json.dump({"tokenizer_class": cls, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config,
               "chat_template": "{% for m in messages %}<s>{{ m.content }}{{ eos_token }}{% endfor %}"},
              open(f"{folder}/tokenizer_config.json", "w"))
    return folder


def check_tokenizers(d):
    """Where transformers builds another tokenizer than tokenizer.json says, it is said which is used; both can be."""
    text = jsonl(f"{d}/ab.jsonl", [{"text": " ab a</s>ab"}, {"text": "ab<new>b"}])
    if int(transformers.__version__.split(".")[0]) < 5:
        print(f"SKIPPED: transformers {transformers.__version__} builds no other tokenizers: the difference was not tried")
        return
    cases = (("same", "PreTrainedTokenizerFast", {}, ()), ("llama", "LlamaTokenizer", {}, ("normalizer (none", "pre_tokenizer (Metaspace")),
             ("gemma", "GemmaTokenizer", {}, ("normalizer (Replace", "pre_tokenizer (Split")),
             ("added", "PreTrainedTokenizerFast", {"pad_token": "<new>"}, ("1 added token ('<new>' only there)",)))
    for name, cls, config, words in cases:
        folder = spiece(f"{d}/{name}", cls, **config)
        exact, auto = Tokenizer.from_file(f"{folder}/tokenizer.json"), transformers.AutoTokenizer.from_pretrained(folder)
        for how, encode in (("json", lambda t: exact.encode(t).ids), ("auto", lambda t: auto(t).input_ids)):
            said = prepare("--model", folder, "--out", f"{d}/x.safetensors", "--tokenizer-from", how, text)
            want = [encode(t) for t in (" ab a</s>ab", "ab<new>b")]
            assert rows_of(f"{d}/x.safetensors") == want, (name, how)
            assert said.count("another tokenizer than tokenizer.json says") == bool(words), said
            assert all(w in said for w in words) and ("unk_token" not in said), said
            if words:
                assert cls in said or name == "added"
                assert ("tokenizer.json is used" if how == "json" else "transformers' is used") in said
            with safe_open(f"{d}/x.safetensors", "np") as f:
                assert f.metadata()["tokenizer_from"] == how
        different = [exact.encode(t).ids for t in (" ab a</s>ab", "ab<new>b")] != [
            auto(t).input_ids for t in (" ab a</s>ab", "ab<new>b")]
        assert different == (name != "same"), name
        said = prepare("--model", folder, "--out", f"{d}/x.safetensors", jsonl(f"{d}/m.jsonl", [
            {"messages": chat([("user", "ab"), ("assistant", "a")])}]))
        assert ("another tokenizer" in said) == bool(words)
    folders = os.path.join(SHARED, "tokenizers")
    if os.path.exists(folders):  # and of those that people have: what is said is so, and only then
        for name in ("qwen3", "minimind", "gpt2", "phi-3-mini", "mistral-v0.1"):
            folder = os.path.join(folders, name)
            found = prep.Encoder(folder, special=True).compared(prep.load_auto(folder))
            assert bool(found) == (name in ("phi-3-mini", "mistral-v0.1")), (name, found)


def check_hash(d):
    """truncation and padding change no id, and not the hash: made with one, run with the other."""
    from tdgen import tokenizer as tdgen_tokenizer
    import xxhash

    plain = b'{\n  "version": "1.0",\n  "truncation": %s,\n  "padding":%s , "model": {"truncation": [1], "vocab": {"\\"padding\\"": 1}}}'
    good = plain % (b"null", b"null")
    want = xxhash.xxh3_64_hexdigest(good)
    for a, b in ((b"null", b"null"), (b'{"x": ["}", {"truncation": 1}], "\\"": "]"}', b"[[], {}]"), (b"false", b'"a\\"}"'),
                 (b"12", b"{}")):
        assert tdgen_tokenizer.content_hash(plain % (a, b)) == want, (a, b)
    for other in (good.replace(b"[1]", b"[2]"), good + b"\n", b"[" + good + b"]", b'"truncation": {}', b"", b"{"):
        assert tdgen_tokenizer.content_hash(other) == xxhash.xxh3_64_hexdigest(other) != want
    case = os.path.join(CASES, "05-truncation-padding")
    if not os.path.exists(case):
        print("SKIPPED: ../shared is absent: its tokenizer with truncation and padding was not tried")
        return
    write(f"{d}/t.jsonl", '{"text": "a b c"}\n')
    hashes = []
    for name in ("clean", "dirty"):
        prepare("--model", os.path.join(case, name), "--out", f"{d}/{name}.safetensors", f"{d}/t.jsonl")
        with safe_open(f"{d}/{name}.safetensors", "np") as f:
            hashes.append(f.metadata()["tokenizer_hash"])
    assert hashes[0] == hashes[1] and rows_of(f"{d}/clean.safetensors") == rows_of(f"{d}/dirty.safetensors")
    tdgen = os.path.abspath(os.environ.get("TDGEN") or os.path.join(ROOT, "build/release/src/tdgen"))
    for name, other in (("clean", "dirty"), ("dirty", "clean")):
        done = subprocess.run([tdgen, "-c", os.path.join(case, "run.ini"), f"model.path={os.path.join(case, other)}",
                               f"data.path={d}/{name}.safetensors", f"output.dir={d}/out-{name}", "--quiet"],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def main():
    assert PREPARE
    with tempfile.TemporaryDirectory() as d:
        os.environ["HF_HOME"] = f"{d}/cache"
        check_columns(d)
        check_hostile(d)
        check_tokenizers(d)
        check_extras(d)
        check_hash(d)
    print("OK")


if __name__ == "__main__":
    main()
