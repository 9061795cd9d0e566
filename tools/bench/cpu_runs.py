"""What balance.py and pipeline.py share: a synthetic teacher and dataset, and runs of tdgen over them."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import make_checkpoint


class Bench:
    """A folder with a checkpoint of a shape and a token dataset; removed with the object."""

    def __init__(self, tdgen: str, shape: str, n_tokens: int, options: list[str]) -> None:
        self.tdgen, self.options = tdgen, options
        self.dir = tempfile.TemporaryDirectory(prefix="tdgen-bench-")
        self.path = Path(self.dir.name)
        make_checkpoint.make_checkpoint(shape, self.path / "model")
        self.data(n_tokens)

    def data(self, n_tokens: int) -> None:
        """A dataset of about n_tokens, log-normal lengths."""
        vocab = json.loads((self.path / "model/config.json").read_text())["vocab_size"]
        make_checkpoint.make_tokens("ragged", n_tokens, vocab, self.path / "data.safetensors")

    def run(self, name: str, *options: str) -> tuple[dict, str]:
        """One run from the start; its status.json, and what it printed."""
        out = self.path / name
        shutil.rmtree(out, ignore_errors=True)
        ini = self.path / "run.ini"
        ini.write_text(f"[model]\npath = {self.path}/model\n[data]\npath = {self.path}/data.safetensors\n"
                       f"format = tokens\n[output]\ndir = {out}\n[capture]\ntop_k = 16\n")
        done = subprocess.run([self.tdgen, "-c", str(ini), *self.options, *options],
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, done.args))} gave exit code {done.returncode}:\n"
                     f"{done.stdout}{done.stderr}")
        return json.loads((out / "status.json").read_text()), done.stdout + done.stderr

    def shards(self, name: str) -> list[bytes]:
        return [p.read_bytes() for p in sorted((self.path / name).glob("shard-*.safetensors"))]
