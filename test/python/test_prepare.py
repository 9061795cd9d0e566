#!/usr/bin/env python3
"""tools/prepare with the real datasets, tokenizers and transformers: every way a dataset lies on disk,
masks of real chat templates, refusals, and the result through tdgen ($TDGEN or
build/release/src/tdgen)."""

import contextlib
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHARED = os.path.join(os.path.dirname(ROOT), "shared", "data")
TEACHER = os.path.join(ROOT, "demo", "teacher")
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

try:
    import datasets
    import jinja2  # noqa: F401
    import transformers
    from safetensors import safe_open
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer
    import tqdm  # noqa: F401
    import xxhash  # noqa: F401
except ImportError as e:
    print(f"SKIPPED: tools/prepare was NOT tested: {e}")
    sys.exit(0)

from tdgen import prepare as prep  # noqa: E402
from tdgen.cli import prepare as PREPARE  # noqa: E402

datasets.disable_progress_bars()

# As ChatML does, with the demo teacher's own special tokens.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':\\n' }}"
    "{%OPEN%}{{ m['content'] | trim }}{{ eos_token }}{%CLOSE%}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
PLAIN = TEMPLATE.replace("{%OPEN%}", "").replace("{%CLOSE%}", "")
MARKED = TEMPLATE.replace(
    "{%OPEN%}{{ m['content'] | trim }}{{ eos_token }}{%CLOSE%}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] | trim }}{{ eos_token }}{% endif %}",
)
CHATS = [
    [("user", "Who was Moses?"), ("assistant", "He was the son of Amram.")],
    [("system", "Be short."), ("user", "In the beginning?"), ("assistant", " And God said,\n"),
     ("user", "Let there be light"), ("assistant", "and there was light. And God said,")],
    [("user", "No answer yet")],
    [("assistant", "It begins here."), ("user", "Fine"), ("assistant", "Fine")],
]


def prepare(*args, expect=0, says=""):
    """tools/prepare within this process: loading the libraries takes seconds."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = PREPARE.main(["--quiet", *([] if "--no-overwrite" in args else ["--overwrite"]), *(str(a) for a in args if a != "--no-overwrite")])
    text = out.getvalue()
    assert code == expect, f"{args}: exit {code}, expected {expect}\n{text}"
    assert says in text, f"{args}: no {says!r} in\n{text}"
    return text


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return path


def targets(t, row, decode):
    """The texts of the runs of targets of a row."""
    a, b = t["sample_offsets"][row : row + 2]
    out, run = [], []
    for token, target in zip([*t["input_ids"][a:b], 0], [*t["loss_mask"][a:b], 0]):
        if target:
            run.append(int(token))
        elif run:
            out.append(decode(run))
            run = []
    return out


def decoder(folder):
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    return lambda ids: tok.decode(ids, skip_special_tokens=False)


def same(a, b):
    x, y = load_file(a), load_file(b)
    assert list(x) == list(y)
    for name in x:
        assert x[name].dtype == y[name].dtype and (x[name] == y[name]).all(), f"{a} {b}: {name}"


def check_sources(d):
    """However the same rows lie on disk, the same token file comes out."""
    rows = [{"messages": [{"role": r, "content": c} for r, c in chat], "n": i}
            for i, chat in enumerate(CHATS)]
    shared_gpt = [{"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(r, r),
                                      "value": c} for r, c in chat]} for chat in CHATS]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(f"{d}/saved")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(f"{d}/splits")
    os.makedirs(f"{d}/hub/data")
    data.to_parquet(f"{d}/hub/data/train-00000-of-00001.parquet")
    data.select([0]).to_parquet(f"{d}/hub/data/test-00000-of-00001.parquet")
    data.to_parquet(f"{d}/rows.parquet")
    data.to_json(f"{d}/rows.jsonl")
    write(f"{d}/array.json", json.dumps(shared_gpt, indent=1))
    with open(f"{d}/rows.jsonl", "rb") as f, gzip.open(f"{d}/packed.jsonl.gz", "wb") as g:
        g.write(f.read())
    arrow = next(f for f in os.listdir(f"{d}/saved") if f.endswith(".arrow"))
    template = write(f"{d}/plain.jinja", PLAIN)
    common = ("--model", TEACHER, "--chat-template", template)
    first = f"{d}/first.safetensors"
    prepare(*common, "--out", first, f"{d}/rows.jsonl", says="4 rows")
    for source in ("saved", "splits", "hub", "rows.parquet", "array.json", "packed.jsonl.gz",
                   f"saved/{arrow}"):
        prepare(*common, "--out", f"{d}/other.safetensors", f"{d}/{source}")
        same(first, f"{d}/other.safetensors")
    for source in ("splits", "hub"):
        prepare(*common, "--out", f"{d}/test.safetensors", "--split", "test", f"{d}/{source}",
                says="1 rows")
        prepare(*common, "--out", f"{d}/x.safetensors", "--split", "dev", f"{d}/{source}",
                expect=4, says="no split dev")
    prepare(*common, "--out", f"{d}/two.safetensors", "--max-rows", "2", f"{d}/hub", says="2 rows")

    # The masks, as a person would set them.
    t, decode = load_file(first), decoder(TEACHER)
    assert [str(x.dtype) for x in t.values()].count("int32") == 1 and t["loss_mask"].dtype == "uint8"
    for row, chat in enumerate(CHATS):
        want = [c.strip() for r, c in chat if r == "assistant"]
        got = targets(t, row, decode)
        assert len(got) == len(want), (row, got)
        for g, w in zip(got, want):
            # The demo's tokenizer may write a blank in front of a word.
            assert g.strip().split("<|eos|>")[0].strip() == w and "<|eos|>" in g, (row, got)
    with safe_open(first, "np") as f:
        meta = f.metadata()
    with open(os.path.join(TEACHER, "tokenizer.json"), "rb") as f:
        assert meta["tokenizer_hash"] == f"{xxhash.xxh3_64_intdigest(f.read()):016x}"
    assert meta["template_hash"] == f"{xxhash.xxh3_64_intdigest(PLAIN.encode()):016x}"
    assert int(meta["n_targets"]) == int(t["loss_mask"].sum()) > 0
    with open(first, "rb") as f:
        assert (struct.unpack("<Q", f.read(8))[0]) % 8 == 0, "the tensors are not aligned"
    assert sorted(x for x in os.listdir(d) if x.endswith(".tmp")) == []

    # A template that marks what it generates: nothing is searched.
    marked = write(f"{d}/marked.jinja", MARKED)
    prepare("--model", TEACHER, "--chat-template", marked, "--out", f"{d}/marked.safetensors",
            f"{d}/rows.jsonl")
    m = load_file(f"{d}/marked.safetensors")
    assert (m["input_ids"] == t["input_ids"]).all()
    for row, chat in enumerate(CHATS):
        want = [c.strip() + "<|eos|>" for r, c in chat if r == "assistant"]
        assert [g.strip() for g in targets(m, row, decode)] == want, targets(m, row, decode)
    return first


def check_texts(d):
    write(f"{d}/t.jsonl", '{"text": "In the beginning"}\n{"text": ""}\n')
    out = f"{d}/text.safetensors"
    prepare("--model", TEACHER, "--out", out, "--append-eos", "<|eos|>", f"{d}/t.jsonl")
    tok = Tokenizer.from_file(os.path.join(TEACHER, "tokenizer.json"))
    eos = tok.token_to_id("<|eos|>")
    want = [tok.encode(x).ids for x in ("In the beginning", "")]
    want = [x if x and x[-1] == eos else [*x, eos] for x in want]
    t = load_file(out)
    assert list(t["input_ids"]) == want[0] + want[1] and t["loss_mask"].all()
    write(f"{d}/qa.jsonl", '{"q": "Who?", "a": "God"}\n')
    prepare("--model", TEACHER, "--out", out, "--prompt-field", "q", "--completion-field", "a",
            "--no-special-tokens", f"{d}/qa.jsonl")
    t = load_file(out)
    q, a = (tok.encode(x, add_special_tokens=False).ids for x in ("Who?", "God"))
    assert list(t["input_ids"]) == q + a and list(t["loss_mask"]) == [0] * len(q) + [1] * len(a)


def check_refusals(d):
    common = ("--model", TEACHER, "--out", f"{d}/x.safetensors")
    chat = f"{d}/rows.jsonl"
    prepare(*common, chat, expect=4, says="has no chat template")
    prepare(*common, f"{d}/nothing", expect=4, says="is not there")
    prepare(*common, "--text-field", "txt", f"{d}/t.jsonl", expect=4, says="no column txt")
    prepare(*common, f"{d}/qa.jsonl", expect=4, says="which column is it? There are: q, a")
    broken = write(f"{d}/broken.parquet", "PAR1 and then nothing")
    prepare(*common, broken, expect=4, says="broken.parquet")
    write(f"{d}/odd.jsonl", '{"conversations": [{"from": "alien", "value": "x"}]}\n')
    plain = ("--chat-template", f"{d}/plain.jinja")
    prepare(*common, *plain, f"{d}/odd.jsonl", expect=4, says="row 0: message 0: from = 'alien'")
    # Templates in which the place of a turn cannot be known.
    for name, template, says in (
        ("upper", "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
                  "{{ '>' if add_generation_prompt }}", "changes its text"),
        ("order", "{% if add_generation_prompt %}first{% endif %}{% for m in messages %}[{{ m.role }}]"
                  "{{ m.content }}{{ eos_token }}{% endfor %}", "where the turn begins"),
        ("glued", "{% for m in messages %}{{ m.content }}{% if loop.last and m.role == 'assistant' %}"
                  "{{ eos_token }}{% else %}{{ bos_token }}{% endif %}{% endfor %}", "where it ends"),
        ("strict", "{{ raise_exception('no such roles') }}", "no such roles"),
    ):
        write(f"{d}/two.jsonl", json.dumps({"messages": [
            {"role": r, "content": c} for r, c in (("user", "abc"), ("assistant", "de"),
                                                   ("user", "fg"), ("assistant", "hi"))]}) + "\n")
        file = write(f"{d}/{name}.jinja", template)
        prepare(*common, "--chat-template", file, f"{d}/two.jsonl", expect=4, says=says)
    assert not os.path.exists(f"{d}/x.safetensors"), "a failure left a file"
    with open(f"{d}/odd.jsonl", "a", encoding="utf-8") as f:
        f.write('{"conversations": [{"from": "human", "value": "x"}]}\n')
    prepare(*common, *plain, "--on-bad-row", "skip", f"{d}/odd.jsonl", expect=7, says="1 rows left out")


def check_tdgen(d, tokens):
    tdgen = os.path.abspath(os.environ.get("TDGEN") or os.path.join(ROOT, "build/release/src/tdgen"))
    if not os.access(tdgen, os.X_OK):
        sys.exit(f"{tdgen} is not there: build tdgen, or set TDGEN")

    def run(model, out):
        ini = write(f"{d}/run.ini", f"[model]\npath = {model}\n[data]\npath = {tokens}\n"
                                    f"[devices]\ngpus = cpu\n[output]\ndir = {out}\n")
        return subprocess.run([tdgen, "-c", ini, "--quiet"], cwd=ROOT, capture_output=True, text=True)

    # The program as it is started, too.
    p = subprocess.run([os.path.join(ROOT, "tools", "prepare"), "--help"], capture_output=True, text=True)
    assert p.returncode == 0 and "--messages-field" in p.stdout, p.stderr

    p = run(TEACHER, f"{d}/out")
    assert p.returncode == 0, p.stderr
    record, t = load_file(f"{d}/out/shard-000000.safetensors"), load_file(tokens)
    assert (record["input_ids"] == t["input_ids"]).all()
    # Rows are recorded for the targets alone (a row's first token has nothing before it).
    mask = t["loss_mask"].copy()
    mask[t["sample_offsets"][:-1]] = 0
    assert (record["loss_mask"] == mask).all() and len(record["row_position"]) == mask.sum()
    shutil.copytree(TEACHER, f"{d}/foreign")
    with open(f"{d}/foreign/tokenizer.json", "a", encoding="utf-8") as f:
        f.write("\n")
    p = run(f"{d}/foreign", f"{d}/out2")
    with open(f"{d}/foreign/tokenizer.json", "rb") as f:
        theirs = f"{xxhash.xxh3_64_intdigest(f.read()):016x}"
    with safe_open(tokens, "np") as f:
        ours = f.metadata()["tokenizer_hash"]
    assert p.returncode == 4 and ours in p.stderr and theirs in p.stderr, p.stderr


def check_real_templates(d):
    """The tokenizers and templates that people use, on conversations that we did not write."""
    source = os.path.join(SHARED, "corpora", "dummy_conversation.json")
    if not os.path.exists(source):
        print("SKIPPED: ../shared is absent: no real chat template was tried")
        return
    with open(source, encoding="utf-8") as f:
        chats = [prep.to_messages(row["conversations"]) for row in json.load(f)]
    for name, end in (("qwen3", "<|im_end|>\n"), ("llama3_1", "<|eot_id|>"),
                      ("deepseek_v3", "<｜end▁of▁sentence｜>"), ("minimind", "<|im_end|>\n")):
        folder, out = os.path.join(SHARED, "tokenizers", name), f"{d}/{name}.safetensors"
        prepare("--model", folder, "--out", out, source, says=f"{len(chats)} rows")
        t, decode = load_file(out), decoder(folder)
        tok = transformers.AutoTokenizer.from_pretrained(folder)
        exact = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        for row, chat in enumerate(chats):
            a, b = t["sample_offsets"][row : row + 2]
            text = tok.apply_chat_template(chat, tokenize=False)
            assert list(t["input_ids"][a:b]) == exact.encode(text, add_special_tokens=False).ids
            got = targets(t, row, decode)
            want = [m["content"] for m in chat if m["role"] == "assistant"]
            assert len(got) == len(want), (name, row, got)
            for g, w in zip(got, want):
                assert g.removeprefix("<think>\n\n</think>\n\n") == w + end, (name, row, g, w)
    # What Python's jinja2 renders of a template, ours is.
    folder = os.path.join(SHARED, "tokenizers", "qwen3")
    template = os.path.join(SHARED, "chat", "templates", "Qwen-Qwen3-0.6B.jinja")
    chats, n = prep.Chats(folder, template), 0
    with open(os.path.join(SHARED, "chat", "rendered.jsonl"), encoding="utf-8") as f:
        for line in f:
            case = json.loads(line)
            context = case["context"]
            known = {"messages", "tools", "documents", "add_generation_prompt"}
            extra = {k for k in context if k not in known and not k.endswith("_token")}
            if case["template"] == os.path.basename(template) and not extra and not context["tools"]:
                got = chats.render(context["messages"], prompt=context["add_generation_prompt"])
                assert got == case["output"], (case["case"], got)
                n += 1
    assert n > 3, n


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def check_trl(d):
    """TRL's formats: a completion is the target, whether texts or turns; null is null in each; nothing is replaced unasked."""
    plain = write(f"{d}/trl.jinja", "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
                  "{% if add_generation_prompt %}assistant: {% endif %}")
    common = ("--model", TEACHER, "--out", f"{d}/trl.safetensors")
    decode = decoder(TEACHER)

    def made(rows, *args, **kw):
        said = prepare(*common, *args, jsonl(f"{d}/trl.jsonl", rows), **kw)
        return said, load_file(f"{d}/trl.safetensors") if not kw.get("expect") else None

    _, t = made([{"prompt": "In the beginning", "completion": " God created"}])
    assert targets(t, 0, decode) == [" God created"], targets(t, 0, decode)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Adam."},
             {"role": "user", "content": "And who?"}]
    rest = [{"role": "assistant", "content": "Eve."}]
    chat = ("--chat-template", plain)
    _, t = made([{"prompt": turns, "completion": rest}], *chat)
    _, whole = made([{"messages": turns + rest}], *chat)
    assert t["input_ids"].tolist() == whole["input_ids"].tolist()
    assert targets(t, 0, decode) == [" Eve.\n"], targets(t, 0, decode)
    assert targets(whole, 0, decode) == [" Adam.\n", " Eve.\n"], targets(whole, 0, decode)
    for turn in ({"role": "user", "content": None}, {"from": "human", "value": None}):
        said, _ = made([{"messages": [turn, {"role": "assistant", "content": "Yes."}]}],
                       "--chat-template", write(f"{d}/none.jinja", "{% for m in messages %}{{ m['role'] }}: {{ m.get('content') or "
                                                "'nothing' }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"))
        assert "1 rows" in said, said
    made([{"chosen": "a", "rejected": "b"}], expect=4, says="preferences (chosen, rejected)")
    made([{"prompt": "a"}], expect=4, says="prompts without completions")
    said, _ = made([{"messages": turns[:1]}], *chat)
    assert "1 of 1 rows have not a single target (the first is row 0)" in said, said
    prepare("--no-overwrite", *common, jsonl(f"{d}/trl.jsonl", [{"text": "x"}]), expect=4, says="--overwrite replaces it")


def check_bos(d):
    """A BOS twice, or not at all, is said once."""
    folder = f"{d}/bos"
    shutil.copytree(TEACHER, folder)
    with open(f"{folder}/tokenizer.json", encoding="utf-8") as f:
        tokenizer = json.load(f)
    name, bos = next((t["content"], t["id"]) for t in tokenizer["added_tokens"])
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}}}
    write(f"{folder}/tokenizer.json", json.dumps(tokenizer))
    common = ("--model", folder, "--out", f"{d}/bos.safetensors")
    said = prepare(*common, jsonl(f"{d}/b.jsonl", [{"text": "one"}, {"text": name + "two"}, {"text": name + "three"}]))
    assert said.count(f"row 1 begins with two BOS tokens (id {bos})") == 1 and "row 2" not in said, said
    chat = write(f"{d}/nobos.jinja", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    said = prepare(*common, "--chat-template", chat, jsonl(f"{d}/b.jsonl", [{"messages": [{"role": "assistant", "content": "So."}]}]))
    assert f"row 0 does not begin with the BOS token (id {bos})" in said, said


def main():
    with tempfile.TemporaryDirectory() as d:
        os.environ["HF_HOME"] = f"{d}/cache"
        tokens = check_sources(d)
        check_texts(d)
        check_refusals(d)
        check_trl(d)
        check_bos(d)
        check_tdgen(d, tokens)
        check_real_templates(d)
    print("OK")


if __name__ == "__main__":
    main()
