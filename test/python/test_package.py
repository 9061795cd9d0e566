#!/usr/bin/env python3
"""The package as its users have it: installed by pip into an environment of its own, its commands run there; unfinished
folders refused; a Run as a sequence, as text, as a Hugging Face dataset; and its pictures. (--tdgen, $TDGEN or
build/release/src/tdgen.)"""

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import venv

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
import _synth  # noqa: E402
import test_damage  # noqa: E402
import tdgen  # noqa: E402
from tdgen.cli import export, logits, plot as plot_command  # noqa: E402

COMMANDS = ("tdgen-export", "tdgen-logits", "tdgen-plot", "tdgen-prepare")


def refused(call, *words):
    try:
        call()
    except (tdgen.RecordError, ValueError) as e:
        for word in words:
            assert word in str(e), (word, str(e))
        return
    raise AssertionError(f"not refused ({words})")


def command(main, *args, status=0, words=()):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(a) for a in args])
    assert code == status, (code, said.getvalue())
    for word in words:
        assert word in said.getvalue(), (word, said.getvalue())
    return said.getvalue()


def installed(tmp, run):
    """pip install ./python, without the network: of a copy, as the build writes beside the sources."""
    shutil.copytree(ROOT + "/python", tmp + "/python", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    venv.create(tmp + "/venv", symlinks=True)
    python = tmp + "/venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp, tmp + "/python"], check=True)
    (wheel,) = [f for f in os.listdir(tmp) if f.endswith(".whl")]
    subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", f"{tmp}/{wheel}"], check=True)
    # What it depends on is here already.
    site = next(p for p in sys.path if p.endswith("site-packages"))
    done = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True,
                          check=True)
    home = done.stdout.strip()
    assert os.path.exists(home + "/tdgen/py.typed") and os.path.exists(home + "/tdgen/cli/export.py")
    with open(home + "/here.pth", "w", encoding="utf-8") as f:
        f.write(site + "\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = ("import sys, tdgen; run = tdgen.open(sys.argv[1]); print(tdgen.__file__, tdgen.__version__, len(run)); "
            "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules; "
            "assert all(hasattr(tdgen, n) for n in dir(tdgen) if n not in ('Collator', 'DistillationDataset', 'KDMixin', "
            "'collate', 'kd_loss', 'torch_dataset'))")
    done = subprocess.run([python, "-c", code, run], capture_output=True, text=True, check=True, cwd=tmp, env=env)
    assert done.stdout.split() == [home + "/tdgen/__init__.py", tdgen.__version__, "200"], done.stdout
    for name in COMMANDS:
        done = subprocess.run([f"{tmp}/venv/bin/{name}", "--help"], capture_output=True, text=True, check=True, cwd=tmp, env=env)
        assert done.stdout.startswith(f"usage: {name} "), done.stdout


def unfinished(tmp, _):
    """By the manifest's extent: what is missing is said, and read only when asked for."""
    teacher = _synth.Teacher(n=12)  # three shards of four samples, each one dataset row here
    extent = {"n_rows": 3, "n_rows_at_least": 3, "max_samples": 0, "shard_samples": 1, "worker_id": 0, "total_workers": 1}

    def folder(**changed):
        path = tempfile.mkdtemp(dir=tmp) + "/run"
        _synth.write_run(path, teacher, "topk", extent={**extent, **changed})
        return path

    whole = tdgen.open(folder())
    assert whole.complete is True and len(whole) == 12
    unknown = tempfile.mkdtemp(dir=tmp) + "/run"
    _synth.write_run(unknown, teacher, "topk")
    assert tdgen.open(unknown).complete is None and len(tdgen.open(unknown)) == 12

    for changed, words in (
            ({"n_rows": 5, "n_rows_at_least": 5}, ["60% of 5 rows", "shards 3 to 4", "same command again", "partial=True"]),
            ({"n_rows": None, "n_rows_at_least": 8}, ["at least 8", "the dataset's end was not reached"]),
            ({"n_rows": 10**15}, ["0% of 1,000,000,000,000,000 rows", "..."]),
            ({"shard_samples": 2}, ["missing: shards 0 to 1"]),  # their rows are others then
            ({"total_workers": 2, "worker_id": 1, "n_rows": 6}, ["33% of 3 rows (this worker's)", "shards 3, 5"])):
        path = folder(**changed)
        refused(lambda: tdgen.open(path), path, "is not finished", *words)  # noqa: B023
        run = tdgen.open(path, partial=True)
        assert run.complete is False and len(run) == 12 and "unfinished" in repr(run)
        command(export.main, "nemo", path, path + "-out", "--quiet", status=4, words=["is not finished", "--partial"])
        command(export.main, "nemo", path, path + "-out", "--quiet", "--partial")
    hidden = tempfile.mkdtemp(dir=tmp) + "/run"
    _synth.write_run(hidden, teacher, "hidden", extent={**extent, "n_rows": 4})
    command(logits.main, hidden, hidden + "-out", "--model", tmp, "--quiet", status=4, words=["is not finished"])
    # A worker's own share, whole: read, but exported only when asked for.
    share = folder(total_workers=2, n_rows=6)
    for k in (1, 2):
        os.remove(f"{share}/shard-{k:06d}.safetensors")
    lines = open(share + "/shards.jsonl", encoding="utf-8").read().splitlines(True)
    with open(share + "/shards.jsonl", "w", encoding="utf-8") as f:
        f.write(lines[0])
    refused(lambda: tdgen.open(share), "33% of 3 rows", "shards 2, 4")
    manifest = json.load(open(share + "/manifest.json", encoding="utf-8"))
    manifest["extent"].update(n_rows=2)
    _synth.write_manifest(share, manifest)
    assert tdgen.open(share).complete is True and len(tdgen.open(share)) == 4
    command(export.main, "nemo", share, share + "-out", "--quiet", status=4, words=["one of 2 workers", "tdgen merge"])

    # Two of three shards deleted, with their lines or without.
    for lines_too in (True, False):
        for path in (folder(), unknown):
            copy = tempfile.mkdtemp(dir=tmp) + "/run"
            shutil.copytree(path, copy)
            for k in (1, 2):
                os.remove(f"{copy}/shard-{k:06d}.safetensors")
            if lines_too:
                first = open(copy + "/shards.jsonl", encoding="utf-8").readline()
                with open(copy + "/shards.jsonl", "w", encoding="utf-8") as f:
                    f.write(first)
            if path is not unknown:
                refused(lambda: tdgen.open(copy), "33% of 3 rows are there; missing: shards 1 to 2")  # noqa: B023
            elif not lines_too:
                refused(lambda: tdgen.open(copy), "shards 1 to 2 of shards.jsonl are not there")  # noqa: B023
            assert len(list(tdgen.open(copy, partial=True))) == 4

    # The extent is the manifest's: its hash covers it, and a wrong one is refused by name.
    path = folder()
    manifest = json.load(open(path + "/manifest.json", encoding="utf-8"))
    manifest["extent"]["n_rows"] = 2
    with open(path + "/manifest.json", "w", encoding="utf-8") as f:
        json.dump(manifest, f)
    refused(lambda: tdgen.open(path, partial=True), "damaged or was edited")
    for bad in ({"n_rows": -1}, {"n_rows": 2.5}, {"shard_samples": 0}, {"worker_id": 1}, {"total_workers": "2"}, {"n_rows": True}):
        refused(lambda: tdgen.open(folder(**bad), partial=True), "manifest.json")  # noqa: B023
    for key in (None, *extent):  # whatever stands there: refused by name, or read
        for odd in test_damage.ODD:
            if odd == "\ud800" or isinstance(odd, float) or (isinstance(odd, int) and abs(odd) > 2**64):
                continue  # what the hash here does not write as tdgen does
            manifest["extent"] = odd if key is None else {**extent, key: odd}
            _synth.write_manifest(path, manifest)
            for partial in (False, True):
                try:
                    tdgen.open(path, partial=partial)
                except tdgen.RecordError as e:
                    assert path in str(e) and "hash" not in str(e), e


def sequence(tmp, path):
    run = tdgen.open(path)
    n = len(run)
    assert run[-1]["id"] == run[n - 1]["id"] == run.sample(n - 1)["id"] and run.n_positions == sum(len(r["row_position"]) for r in run)
    part = run[10:50:10]
    assert len(part) == 4 and [r["index"] for r in part] == [10, 20, 30, 40] and part[1]["index"] == part[1:][0]["index"] == 20
    assert [r["index"] for r in run[::-1][:2]] == [n - 1, n - 2] and len(run[n:]) == 0
    for bad in (n, -n - 1):
        try:
            run[bad]
            raise AssertionError(bad)
        except IndexError:
            pass
    assert run[np.int64(3)]["index"] == 3
    again = pickle.loads(pickle.dumps(part))
    assert (again[0]["topk_ids"] == part[0]["topk_ids"]).all()
    for word in (path, "200 samples", "15,207 positions", "topk, top_k 16, f16", "2,048 ids", run.fingerprint):
        assert word in repr(run), repr(run)
    assert repr(part).startswith("<4 samples of <tdgen run ")

    # Text, with the teacher's tokenizer, as the library itself decodes it.
    import tokenizers

    teacher = ROOT + "/demo/teacher"
    own = tokenizers.Tokenizer.from_file(teacher + "/tokenizer.json")
    record = run[0]
    rows = [json.loads(line) for line in open(ROOT + "/demo/demo.jsonl", encoding="utf-8")]
    text = run.decode(record["input_ids"])
    assert text == own.decode(record["input_ids"].tolist(), skip_special_tokens=False) and rows[0]["text"] in text
    pieces = run.tokens(record["input_ids"])
    assert "".join(pieces) == text and pieces[0] == "<|bos|>" and run.tokens([-1]) == [""], pieces[:5]
    page = run._repr_html_()
    for word in ("15,207", "most probable", "&lt;|bos|&gt;", "LlamaForCausalLM"):
        assert word in page, word
    assert "<|bos|>" not in page

    # A folder that moved away from its teacher, one with another's tokenizer, and one that wants to run script.
    moved = tmp + "/moved"
    shutil.copytree(path, moved)
    manifest = json.load(open(moved + "/manifest.json", encoding="utf-8"))
    manifest["model_path"] = "/nowhere/<script>\u202e"
    _synth.write_manifest(moved, manifest)
    lost = tdgen.open(moved)
    refused(lambda: lost.decode([1]), "not here", "tokenizer=DIR", "\\u202e")
    assert tdgen.open(moved, tokenizer=teacher).decode(record["input_ids"]) == text
    assert "<script>" not in lost._repr_html_() and "most probable" in lost._repr_html_() and "\u202e" not in repr(lost)
    other = tmp + "/other"
    os.makedirs(other)
    with open(other + "/tokenizer.json", "w", encoding="utf-8") as f:
        f.write(open(teacher + "/tokenizer.json", encoding="utf-8").read() + " ")
    refused(lambda: tdgen.open(moved, tokenizer=other).decode([1]), "were not made with this tokenizer", "tokenizer=DIR")


def hugging_face(tmp, path):
    import datasets

    datasets.disable_progress_bars()
    run = tdgen.open(path)
    loose, mapped = run.to_hf(), run.to_hf(tmp + "/hf")
    command(export.main, "hf", path, tmp + "/parquet", "--format", "parquet", "--quiet", words=["datasets.load_dataset"])
    loaded = datasets.load_dataset(tmp + "/parquet", split="train", cache_dir=tmp + "/cache")
    for data in (loose, mapped, loaded):
        assert len(data) == 200 and data.column_names == loose.column_names
        for i in (0, 7, 199):
            record, row = run[i], data[i]
            assert row["id"] == record["id"] and row["input_ids"] == record["input_ids"].tolist()
            assert np.array_equal(np.array(row["topk_ids"]), record["topk_ids"])
            assert np.array_equal(np.array(row["topk_logprobs"], np.float32), record["topk_logprobs"])
    # The two kinds of folder taken for each other: the package says which one it is.
    for folder, how in ((tmp + "/hf", "datasets.load_from_disk"), (tmp + "/parquet", "datasets.load_dataset")):
        refused(lambda: tdgen.open(folder), "what tdgen-export made", how)  # noqa: B023
    refused(lambda: tdgen.open(tmp), "no output folder of tdgen")


def pictures(tmp, path):
    """The numbers in them against the record's own, and that they are drawn in each format."""
    import tdgen.plot

    run = tdgen.open(path)
    s = tdgen.plot.Summary(run)
    p = np.concatenate([np.exp(r["topk_logprobs"].astype(np.float64)) for r in run])
    for k in (1, 4, 16):
        mass = p[:, :k].sum(axis=1)
        assert abs(s.mass[:, list(s.ks).index(k)].mean() - mass.mean()) < 1e-6
        assert abs(tdgen.plot._kl(s.mass)[list(s.ks).index(k)] - -np.log(mass).mean()) < 1e-6
    # What tdgen itself measured while it ran.
    status = json.load(open(path + "/status.json", encoding="utf-8"))
    assert abs(s.mass[:, -1].mean() - status["truncation"]["mean_mass"]) < 1e-3
    smaller = {x["top_k"]: x for x in status["truncation"]["smaller_k"]}
    assert abs(tdgen.plot._kl(s.mass)[3] - smaller[4]["mean_kl"]) < 2e-3
    assert np.array_equal(np.sort(s.entropy), np.sort(np.concatenate([r["entropy"] for r in run])))
    edges, speed = s.speed
    assert abs((speed * np.diff(edges)).sum() - status["tokens"]) < 1e-6 * status["tokens"]

    teacher, folders = _synth.Teacher(vocab=300, n=12), []
    for mode in tdgen.MODES:
        _synth.write_run(f"{tmp}/{mode}", teacher, mode, top_k=280, top_p=0.9, packed=True, dense_dtype="f32",
                         dtype="q8" if mode == "topp" else "f16")
        folders.append(f"{tmp}/{mode}")
    exact = np.sort(np.exp(np.concatenate([teacher.logp(i) for i in range(12)])), axis=1)[:, ::-1].cumsum(axis=1)
    full = tdgen.plot.Summary(tmp + "/full")
    assert np.allclose(full.mass, exact[:, full.ks - 1], atol=1e-5) and full.ks[-1] == 300
    assert np.allclose(tdgen.plot.Summary(tmp + "/topp").mass[:, -1], [r for i in range(12) for r in 1 - tdgen.open(tmp + "/topp")[i]["tail_mass"]],
                       atol=1e-2)
    few = tdgen.plot.Summary(tmp + "/topk", rows=5)
    assert 5 <= len(few.entropy) <= 8 and len(few.mass) == len(few.entropy)
    assert tdgen.plot.Summary(tmp + "/hidden").mass is None and tdgen.plot.Summary(tmp + "/sample").entropy is not None
    names = [tmp + "/one.png", tmp + "/one.svg", tmp + "/one.pdf"]
    outs = [x for name in names for x in ("--out", name)]
    numbers = json.loads(command(plot_command.main, path, *folders, *outs, "--json"))
    assert len(numbers) == 7 and numbers[0]["top_k"][-1]["k"] == 16
    for name, magic in zip(names, (b"\x89PNG", b"<?xml", b"%PDF")):
        assert open(name, "rb").read(5).startswith(magic) and os.path.getsize(name) > 10_000
    svg = open(tmp + "/one.svg", encoding="utf-8").read()
    for word in ("Probability covered by the top k", "Entropy of the teacher", "Tokens per second", "topk+sample"):
        assert word in svg, word
    command(plot_command.main, tmp + "/hidden", "--out", tmp + "/h.png", "--panels", "mass,speed")
    command(plot_command.main, tmp, "--out", tmp + "/h.png", status=4, words=["no output folder of tdgen"])
    command(plot_command.main, path, "--out", "/nowhere/h.png", status=6)


def main():
    program = _synth.program(__doc__)
    with tempfile.TemporaryDirectory() as tmp:
        run = tmp + "/demo"
        subprocess.run([program, "-c", "conf/demo.ini", f"output.dir={run}", f"model.path={ROOT}/demo/teacher"], check=True, cwd=ROOT,
                       capture_output=True)
        for part in (installed, unfinished, sequence, hugging_face, pictures):
            os.makedirs(f"{tmp}/{part.__name__}")
            part(f"{tmp}/{part.__name__}", run)
    print("OK")


if __name__ == "__main__":
    main()
