"""Hostile inputs of every kind but shards, made from whole ones with a seed: tests/soak_doors.py repeats them, tests sample."""

import copy
import csv
import io
import json
import os
import random
import shutil
import struct
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file

from labelgen.config import Config
from labelgen.manifest import Video, load
from labelgen.run.video import Clock, compile_kernels, label_video
from tests.labelgen.synthetic import write_video
from tests.trainer.synthetic import write_shard
from trainer import checkpoint
from trainer.embeddings.clustering import points
from trainer.embeddings.duplicates import duplicates
from trainer.embeddings.search import search
from trainer.embeddings.table import TEXTS, Table, write_npy, write_part
from trainer.evaluate.features import networks
from trainer.evaluate.results import read_results
from trainer.pages.report import report
from trainer.recipes import RECIPES, parse_options, read, recipe
from trainer.settings import TYPES, Settings, over, resolve
from trainer.study import file as study_file
from trainer.training import train
from trainer.weights.importing import import_weights

NASTY = [
    *(None, True, -1, 0, 0.5, 1, 7, 1e15, 1e-300, 2**62, 10**30, 1e308, -1e308, float("nan"), float("inf"), 100_000),
    *(
        "",
        " ",
        "a",
        "1",
        "1e9",
        "1e9999999999",
        "none",
        "a" * 9000,
        "\0",
        "\ud800",
        "é\u202e",
        "../../x",
        "/dev/zero",
        "/",
        ".",
    ),
    *(
        "{a:>2000000000}",
        "{a.b}",
        "{",
        "{video}" * 50,
        "(" * 3000,
        "x{99999999999}",
        "*" * 50,
    ),
    *([], {}, [[]], [None], {"a": {"b": 1}}, ["a", "a"], [1, "a"], {"*": 1}, ["/dev/zero"]),
]
BOMBS = [
    "[" * 5000,
    "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(12)),
    "a: &a {x: 1}\n"
    + "".join(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]}}\n" for i in range(12)),
    "a: &a [*a]\n",
    "n: " + "9" * 5000 + "\n",
    "n: 1" + ":1" * 3000 + "\n",
    "n: 2001-99-99\n",
    'n: "\\0"\n',
    'n: "\\U99999999"\n',
    "!!python/object/apply:os.system [true]\n",
    "!!int ''\n",
    "- a\n" * 30000,
    "\x07\0\xff",
    "a" * 300_000,
]


def changed(value, rng: random.Random, nasty=NASTY):
    """A copy of nested dicts and lists with one to three places changed: another value, none, one more."""
    root = {"": copy.deepcopy(value)}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = [(root, "")]
        for at, key in places:
            inner = at[key]
            if isinstance(inner, dict):
                places += [(inner, own) for own in inner]
            elif isinstance(inner, list):
                places += [(inner, own) for own in range(len(inner))]
        at, key = rng.choice(places)
        do = rng.random()
        if do < 0.7:
            alike = [one for one in nasty if type(one) is type(at[key])]  # which a check of types lets through
            at[key] = copy.deepcopy(rng.choice(alike if alike and do < 0.5 else nasty))
        elif do < 0.85 and key != "":
            del at[key]
        elif isinstance(at[key], dict):
            at[key][rng.choice(["x", "a\0", 1, None, *at[key]])] = copy.deepcopy(rng.choice(nasty))
        elif isinstance(at[key], list):
            at[key].append(copy.deepcopy(rng.choice(nasty)))
    return root[""]


def flipped(content: bytes, rng: random.Random, head: int = 1 << 30) -> bytes:
    """Bytes of a file with a few of them changed, cut off or put in twice, mostly in its first `head` ones."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if not out:
            break
        at = rng.randrange(min(len(out), head) if rng.random() < 0.8 else len(out))
        do = rng.random()
        if do < 0.5:
            out[at] ^= 1 << rng.randrange(8)
        elif do < 0.8:
            out[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)])
        elif do < 0.9:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        else:
            del out[at : at + rng.randrange(1, 64)]
    return bytes(out[: rng.randrange(1, len(out))]) if rng.random() < 0.1 else bytes(out) or b"x"


def as_json(value) -> str:
    return json.dumps(value, default=str, skipkeys=True)


def odd_file(path: Path, rng: random.Random) -> None:
    """A pipe, a link to an endless device, to itself or to nowhere, a folder, an empty file in the place of a file."""
    path.unlink(missing_ok=True)
    do = rng.randrange(6)
    if do == 0:
        os.mkfifo(path)
    elif do < 4:
        path.symlink_to(["/dev/zero", path.name, "/nowhere"][do - 1])
    elif do == 4:
        path.mkdir()
    else:
        path.touch()


class Mutants:
    """Whole inputs in a folder, and a method for each of KINDS (generator of random numbers) that changes one and uses it."""

    KINDS = ("checkpoint", "weights", "manifest", "lists", "recipe", "option", "study", "result", "embeddings", "video")

    def __init__(self, folder: Path):
        self.folder, self.place = folder, folder / "mutant"
        self.shards = folder / "out" / "demo"
        write_shard(self.shards / "00000.h5", [64] * 6, [1] * 5 + [3])
        settings = Settings(width=0.05, epochs=2, batch_size=4, workers=0, lr=0.01, holdout=0.3)
        self.run = train(settings, self.shards, folder / "run")
        compile_kernels("dis")
        formats = {"mp4": "mpeg4", "avi": "mjpeg", "mkv": "mpeg4", "ts": "mpeg2video"}
        self.videos = [
            write_video(folder / f"v.{ending}", 20, codec=codec, strict="unofficial").read_bytes()
            for ending, codec in formats.items()
        ]
        self._result()
        self._table()

    def __call__(self, kind: str, seed: int) -> None:
        """Make and use a mutant in the folder `place`, which is new."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        getattr(self, kind)(random.Random(f"{kind} {seed}"))

    def _result(self) -> None:
        row = {
            "network": "pretrained",
            "stage": "conv5",
            "pooling": "max",
            "metric": "top-1",
            "value": 50.0,
            "low": 20.0,
            "high": 80.0,
        }
        told = {"dataset": "demo", "split": "1", "mode": "m", "views": "v", "initial": None}
        told |= {"pretraining": {"method": "pace", "dataset": "demo", "steps": 2}}
        others = {"sheets": [{"video": "a", "label": "", "file": "a.png", "shown": ["x"]}]}
        others |= {"neighbours": [{"query": "a", "label": "b", "nearest": [["a", "b"]]}], "notes": ["n"]}
        others |= {"confusion": {"classes": ["a", "b"], "counts": [[1, 0], [1, 1]]}}
        folder = self.run / "results"
        folder.mkdir()
        (folder / "retrieval-demo-1.json").write_text(json.dumps({"protocol": told, "rows": [row], **others}))
        (folder / "a.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
        texts = dict.fromkeys(("items", "labels", "groups", "classes"), np.array(["a", "b"]))
        numbers = {"rows": np.array([0]), "right": np.ones((1, 2), np.float32), "named": np.zeros((1, 2), np.int32)}
        np.savez_compressed(folder / "retrieval-demo-1.npz", **numbers, **texts)

    def _table(self) -> None:
        jpeg = cv2.imencode(".jpg", np.zeros((96, 128, 3), np.uint8))[1].tobytes()
        texts = {name: list("aabbccdd") for name in TEXTS}
        columns = texts | {"start": [0.0, 1.0] * 4, "end": [1.0, 2.0] * 4, "thumbnail": [jpeg] * 8}
        columns["signature"] = [np.random.default_rng(0).bytes(192 * 20), b""] * 4
        settings = dict.fromkeys(("weights", "level", "stage", "pooling", "views"), "x") | {"frames": {"height": 40}}
        failed = {"id": "a", "path": "a", "reason": "r", "kept": False}
        about = {"key": "x", "settings": settings, "failures": [failed]}
        vectors = np.random.default_rng(0).random((8, 16), np.float32)
        write_part(self.folder / "features.parquet", about, vectors, columns)
        Table(self.folder / "features.parquet")  # is one, unchanged

    def checkpoint(self, rng: random.Random) -> None:
        run = shutil.copytree(self.run, self.place / "run")
        folder = next(run.glob("checkpoints/*"))
        file, resumed = folder / "weights.safetensors", rng.random() < 0.3
        do = rng.randrange(6)
        if do < 3:
            weights, meta = load_file(file), json.loads((folder / "checkpoint.json").read_text())
            meta = changed(meta, rng)
            if rng.random() < 0.2:
                weights.pop(rng.choice(list(weights)))
            save_file(weights, file, {"vssl": as_json(meta)})
            (folder / "checkpoint.json").write_text(as_json(meta))
        elif do == 3:
            file = rng.choice([file, folder / "optimiser.safetensors"])
            content = file.read_bytes()
            if rng.random() < 0.5:
                header = json.loads(content[8 : 8 + (length := struct.unpack("<Q", content[:8])[0])])
                text = as_json(changed(header, rng)).encode()
                content = struct.pack("<Q", rng.choice([len(text)] * 9 + [2**63, 10**8])) + text + content[8 + length :]
                file.write_bytes(content)
            else:
                file.write_bytes(flipped(content, rng, 2000))
        elif do == 4:
            resumed, log = True, run / rng.choice(["log.csv", "holdout.csv"])
            log.write_bytes(flipped(log.read_bytes(), rng))
        else:
            resumed, names = True, (file, *folder.glob("[co]*"), run / "log.csv", run / "holdout.csv")
            odd_file(rng.choice(names), rng)
        saved = checkpoint.load(run)
        networks(saved)
        if resumed:
            settings = saved.meta["settings"]
            if settings["epochs"] * settings["repeats"] < 10 and settings["accumulate"] < 10:
                train(None, self.shards, resume=run)
        report(run)

    def weights(self, rng: random.Random) -> None:
        network = {
            f"module.{name}": value for name, value in load_file(next(self.run.glob("**/weights.safetensors"))).items()
        }
        content = {"state_dict": network, "epoch": 3, "args": {"lr": 0.1}}
        torch.save(changed(content, rng), self.place / "w.pth", _use_new_zipfile_serialization=rng.random() < 0.7)
        if rng.random() < 0.7:
            whole = (self.place / "w.pth").read_bytes()
            (self.place / "w.pth").write_bytes(flipped(whole, rng, rng.choice([3000, len(whole)])))
        import_weights(self.place / "w.pth", self.place / "imported", rng.choice([None, "vcop"]), say=lambda _: None)

    def manifest(self, rng: random.Random) -> None:
        root = self.place / "root"
        for name in ("train/run/a_1.avi", "test/sit/b_2.avi", "train/sit/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.avi"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        (root / "labels.csv").write_text("video,label,split\na_1.avi,run,train\nb_2.avi,sit,test\n")
        (root / "list1.txt").write_text("train/run/a_1.avi 1\ntest/sit/b_2.avi 2\n")
        by_table = {
            "csv": {"files": ["labels.csv"], "video": "{video}", "may_lack": "_1"},
            "label": {"column": "label", "folder": 2},
        }
        by_list = {"splits": {"names": ["1"], "lists": {"train": "list{split}.txt"}}, "label": {"folder": 2}}
        by_name = {
            "label": {"pattern": "(?P<label>[a-z])", "folder": 2},
            "group": {"pattern": "^(?P<group>.)"},
            "splits": {"leave_out": "group"},
        }
        by_class = {"classes": {"file": "list1.txt", "pattern": "(?P<label>run|sit)"}, "label": {"folder": 2}}
        forms = [by_table | {"splits": {"column": "split"}}, by_list, by_name, by_class, {"like": "kinetics400"}]
        spec = {
            "name": "mine",
            "videos": {"levels": [2], "extensions": ["avi"]},
            "expected": {"videos": 2},
        } | rng.choice(forms)
        if rng.random() < 0.3:
            spec = {"name": "mine", "layouts": [{**spec, "name": "one"}]}
        path = self.place / "mine.yaml"
        do = rng.random()
        if do < 0.75:
            path.write_text(
                yaml.safe_dump(changed(spec, rng), allow_unicode=True), encoding="utf-8", errors="surrogatepass"
            )
        elif do < 0.9:
            path.write_text(yaml.safe_dump(spec) + rng.choice(BOMBS) if rng.random() < 0.5 else rng.choice(BOMBS))
        else:
            path.touch()
            odd_file(path, rng)
        load(str(path), root).summary()

    def lists(self, rng: random.Random) -> None:
        root = self.place
        (root / "a.avi").touch()
        text = io.StringIO()
        csv.writer(text).writerows([["video", "label"], *([f"{i}.avi", "run"] for i in range(20)), ["a.avi", "run"]])
        content = text.getvalue().encode()
        table = {"csv": {"files": ["labels.csv"], "video": "{video}"}, "label": {"column": "label"}}
        lines = {"splits": {"lists": {"train": "labels.csv"}}, "label": {"number": True}}
        (root / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", **rng.choice([table, lines])}))
        name = root / "labels.csv"
        name.write_bytes(
            rng.choice([flipped(content, rng), b"a,b" * 10**6, content + b" " * 9000 + b"1" * 9000 + b"x", b"\0" * 99])
        )
        if rng.random() < 0.2:
            odd_file(name, rng)
        load(str(root / "mine.yaml"), root).summary()

    def recipe(self, rng: random.Random) -> None:
        path = self.place / "mine.yaml"
        file = rng.choice(sorted(RECIPES.glob("*.yaml")))
        whole = rng.choice([file.read_text(), yaml.safe_dump(read(file.stem))])  # what it changes, and all that it says
        do = rng.random()
        if do < 0.8:
            text = yaml.safe_dump(changed(yaml.safe_load(whole), rng), allow_unicode=True)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        elif do < 0.9:
            path.write_text(rng.choice([whole, ""]) + rng.choice(BOMBS))
        else:
            odd_file(path, rng)
        resolve(recipe(str(path))[0])

    def option(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            own = asdict(Config())
            for name in rng.sample(sorted(own), rng.randint(1, 3)):
                own[name] = rng.choice([*NASTY, ("1", "1e9999999999"), ("1", "2"), (1, 2), ("1/0", "2")])
            Config(**own)
            return
        method = rng.choice(["pace", "statistics", "pace+statistics", "tce", "recognition", "ascnet", "a\0"])
        texts = ["temperature", "x", "speeds", "patterns", "hidden", "pace.literal", "frames", "negatives"]
        given = tuple(
            f"{rng.choice(texts)}={rng.choice([*map(str, NASTY), *BOMBS[:-1]])}" for _ in range(rng.randrange(2))
        )
        options = parse_options(given, method)
        own = {name: rng.choice(NASTY) for name in rng.sample(sorted(TYPES), rng.randint(1, 2))}
        resolve(over(Settings(method=method), Settings(**{"method": method, "options": options or None} | own)))

    def study(self, rng: random.Random) -> None:
        path = self.place / "study.yaml"
        content = {
            "seeds": [0, 1],
            "clips": 24,
            "settings": {"width": 0.05, "batch_size": 8},
            "data": {
                "a": {"shards": "a", "test": 0.5, "targets": {"t": {"csv": "a.csv", "video": "v", "column": "c"}}},
                "b": {"dataset": "demo", "label": {"height": 72}, "folds": 3},
            },
            "rows": {
                "pace": {"method": "pace", "lr": [0.1, 0.2], "holdout": 0.1},
                "vcop": {"recipe": "order-r3d10-ucf101"},
            },
            "measures": [
                {"protocol": "linear", "stage": ["conv4"], "labels": [1, "all"], "pretrained_on": "all"},
                {"protocol": "finetune", "clips": 10, "settings": {"batch_size": 4}, "tested_on": ["a"]},
            ],
            "baselines": ["flow"],
        }
        do = rng.random()
        if do < 0.85:
            extra = [*NASTY, "study.yaml", ["study.yaml"]]
            content |= {"extends": "study.yaml"} if rng.random() < 0.05 else {}
            text = yaml.safe_dump(changed(content, rng, extra), allow_unicode=True)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        elif do < 0.95:
            path.write_text(rng.choice(BOMBS))
        else:
            odd_file(path, rng)
        study_file.read(path)

    def result(self, rng: random.Random) -> None:
        run = shutil.copytree(self.run, self.place / "run")
        path, do = run / "results" / "retrieval-demo-1.json", rng.random()
        if do < 0.6:
            path.write_text(as_json(changed(json.loads(path.read_text()), rng)))
        elif do < 0.7:
            path.write_text(rng.choice(["[" * 10**5, "[[]," * 10**5, '{"rows": ' + "9" * 5000, "NaN", '"\\ud800"']))
        elif do < 0.9:
            other = path.with_name(rng.choice(["retrieval-demo-1.npz", "a.png"]))
            other.write_bytes(flipped(other.read_bytes(), rng))
        else:
            odd_file(rng.choice([path, path.with_suffix(".npz"), path.with_name("a.png"), run / "log.csv"]), rng)
        for one in read_results(run)[0]:
            assert one.title is not None
        report(run)
        for one in read_results(run)[0]:
            assert one.scores is None or len(one.scores.items)

    def embeddings(self, rng: random.Random) -> None:
        path, whole = self.place / "features.parquet", (self.folder / "features.parquet").read_bytes()
        do = rng.random()
        if do < 0.4:
            table = pq.read_table(io.BytesIO(whole))
            about = changed(json.loads(table.schema.metadata[b"vssl"]), rng)
            pq.write_table(table.replace_schema_metadata({"vssl": as_json(about).encode("utf-8", "replace")}), path)
        elif do < 0.95:
            content = flipped(whole[-3000:], rng)
            path.write_bytes(rng.choice([whole[:-3000] + content, flipped(whole, rng)]))
        else:
            odd_file(path, rng)
        table = Table(path)
        points(table, "video")
        duplicates(table)
        search(table, np.ones(table.width, np.float32))
        write_npy(table)

    def video(self, rng: random.Random) -> None:
        path, do = self.place / "a.mp4", rng.random()
        if do < 0.8:
            path.write_bytes(flipped(rng.choice(self.videos), rng, 1500))
        elif do < 0.9:
            size = [rng.choice([1, 640, 9000, 16000, 65535]) for _ in range(2)]
            screen = struct.pack("<HH", *size) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
            path.write_bytes(
                b"GIF89a" + screen + b"\x2c" + struct.pack("<HHHH", 0, 0, *size) + b"\0\x02\x02\x4c\x01\0;"
            )
        else:
            odd_file(path, rng)
        config = Config(
            height=40, width=48, crop=32, flow="dis", fps=rng.choice([None, 5, 25, 60]), clips=rng.choice([None, 1])
        )
        label_video(Video("a", path, "", "", ()), config, lambda encoded: None, Clock())
