"""Run two processes of torch.distributed on gloo once; many tests assert on their results."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from zograd import Hybrid, Method, Record, Run, Store, ZOOptimizer, methods
from zograd.core.tape import Tape, TapeWriter, pack_record
from zograd.core.vector import Noise, Query, Vector
from zograd.distributed import Peers, PeersDisagree, PeersError, shared
from zograd.distributed.shards import follow
from zograd.noise import Kind
from zograd.oracles import sequential

X = torch.linspace(-1, 1, 72).view(12, 6)
Y = torch.linspace(0, 1, 36).view(12, 3).square()
METHODS: dict[str, Callable[[], Method[Any]]] = {
    "two points": lambda: methods.zo_sgd(lr=3e-2),
    "five points": lambda: methods.fzoo(n=4, lr=3e-3),
    "adam": lambda: methods.zo_adam(lr=1e-2),
    "two yields": lambda: methods.zo_sgd(lr="auto"),
}


def network(width: int = 9, dropout: float = 0.0) -> nn.Sequential:
    """A small network with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second, third = nn.Linear(6, width), nn.Linear(width, 5), nn.Linear(5, 3)
    return nn.Sequential(first, nn.Tanh(), nn.Dropout(dropout), second, nn.Tanh(), third)


def cut(parts: int) -> tuple[list[float], Callable[[nn.Module, int], Tensor]]:
    """Weights of the parts of the batch, and the loss of a network on one of them."""
    rows = [torch.arange(len(X))[s::parts] for s in range(parts)]
    return [len(r) / len(X) for r in rows], lambda net, s: nn.functional.mse_loss(net(X[rows[s]]), Y[rows[s]])


def trained(
    peers: Peers,
    name: str = "two points",
    *,
    parts: int = 2,
    deal: Any = "data",
    steps: int = 6,
    dropout: float = 0.0,
    broken: Callable[[int, int], None] = lambda step, part: None,
) -> tuple[Run[Any], list[Record], nn.Module]:
    """A run of some steps with evaluations dealt to the processes; `broken` may raise inside of the loss."""
    net = network(dropout=dropout)
    run = Run(Store(dict(net.named_parameters())), METHODS[name](), seed=5)
    weights, loss = cut(parts)
    records = []

    def of_part(part: int, rows: object = None) -> Tensor | float:
        value = broken(run.step_number, part)
        return loss(net, part) if value is None else value

    for _ in range(steps):
        records.append(run.step(shared(of_part, peers, weights=weights, deal=deal)))
        peers.remember(records[-1])
    return run, records, net


def outcome(run: Run[Any], records: Sequence[Record]) -> tuple[str, bytes]:
    """The bits of the weights, and of the tape."""
    return run.store.digest(), b"".join(map(pack_record, records))


CASES = [
    (name, parts, deal, dropout)
    for name in METHODS
    for parts, deal, dropout in [
        (2, "data", 0.0), (1, "directions", 0.0), (2, "directions", 0.5),
        (2, "both", 0.0), (3, "data", 0.5), (3, "both", 0.0),
    ]
]  # fmt: skip


def sharing(peers: Peers) -> dict[Any, Any]:
    """Case -> (outcome, bytes sent in each step)."""
    found: dict[Any, Any] = {}
    for case in CASES:
        name, parts, deal, dropout = case
        before = peers.sent
        run, records, _ = trained(peers, name, parts=parts, deal=deal, dropout=dropout)
        found[case] = (*outcome(run, records), (peers.sent - before) / len(records))
    return found


def failing(peers: Peers) -> dict[str, Any]:
    """A NaN on rank 1, then an exception on rank 1, which is tried again."""
    run, records, _ = trained(peers, broken=lambda step, part: float("nan") if (step, part) == (2, 1) else None)
    found: dict[str, Any] = {"nan": (*outcome(run, records), [r.refused for r in records])}

    net = network()
    run = Run(Store(dict(net.named_parameters())), METHODS["two points"](), seed=5)
    weights, loss = cut(2)
    tries = [0]

    def fails_once(part: int, rows: object = None) -> Tensor:
        tries[0] += 1
        if peers.rank == 1 and tries[0] == 2:
            raise KeyError("the disk of rank 1")
        return loss(net, part)

    before = run.store.digest()
    oracle = shared(fails_once, peers, weights=weights)
    try:
        run.step(oracle)
    except (KeyError, PeersError) as e:
        found["error"] = (type(e).__name__, str(e))
    found["unmoved"] = run.store.digest() == before and run.step_number == 0
    found["again"] = outcome(run, [run.step(oracle) for _ in range(6)])
    return found


def differing(peers: Peers) -> dict[str, Any]:
    """Histories that differ, weights that differ, stops, blocks that fail."""
    found: dict[str, Any] = {}
    other = Peers(peers.group)
    _, records, _ = trained(other, steps=2)
    other.remember(records[0] if peers.rank else records[1])
    for name, act in {
        "history": lambda: trained(other, steps=1),
        "weights": lambda: peers.compare("abc" if peers.rank else "abd", "the weights"),
        "split": lambda: split_history(peers, records[0]),
    }.items():
        try:
            act()
            found[name] = "nothing"
        except PeersDisagree as e:
            found[name] = str(e)
    try:
        with peers.together("loading"):
            if peers.rank == 1:
                raise FileNotFoundError("weights")
    except (FileNotFoundError, PeersError) as e:
        found["together"] = type(e).__name__
    asked = [peers.stopping(peers.rank == 1)]
    peers.exchange([0.0], 1)
    asked.append(peers.stopping(False))
    peers.exchange([0.0], 1)
    found["stop"] = [*asked, peers.stopping(False)]
    found["total"] = peers.total(torch.tensor([1.5, 0.0]) if peers.rank else torch.tensor([0.0, 2.5])).tolist()
    found["broadcast"] = peers.broadcast(b"" if peers.rank else b"a tape"), peers.broadcast(b"")
    return found


def split_history(peers: Peers, record: Record) -> None:
    """Records of split weights count as equal though each process counts its own part of the moved weights."""
    other = Peers(peers.group)
    other.remember(replace(record, moved=0.25 * peers.rank), split=True)
    other.exchange([], 0)


def late(peers: Peers, folder: Path) -> tuple[str, str]:
    """Rank 0 ran alone; rank 1 replays its tape, then both continue."""
    run, records, net = trained(Peers(), steps=4)
    data = b""
    if peers.rank == 0:
        with TapeWriter(folder / "tape.zo", {"parts": 2}) as writer:
            for record in records:
                writer.append(record)
        data = Tape(folder / "tape.zo").bytes()
    else:
        net = network()
        run = Run(Store(dict(net.named_parameters())), METHODS["two points"](), seed=5)
    data = peers.broadcast(data)
    if peers.rank == 1:
        run.replay(Tape(folder / "of rank 0", data).records)
    caught_up = run.store.digest()
    weights, loss = cut(2)
    for _ in range(2):
        run.step(shared(lambda part, rows=None: loss(net, part), peers, weights=weights))
    return caught_up, run.store.digest()


def split_weights(peers: Peers) -> dict[str, Any]:
    """FSDP2 and tensor parallelism: names of results that differ from those with whole weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    found: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", (2,))
    for name in ("two points", "adam"):
        _, records, whole = trained(peers, name)
        net = network()
        for layer in (net[0], net[3]):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        store = Store(dict(net.named_parameters()))
        follow(net, store)
        weights, loss = cut(2)
        sharded = Run(store, METHODS[name](), seed=5)
        mine = Peers(peers.group)
        oracle = shared(lambda part, rows=None, net=net, loss=loss: loss(net, part), mine, weights=weights)
        steps = [sharded.step(oracle) for _ in range(6)]
        found[f"fsdp {name}"] = {
            "weights": different(net, whole),
            "losses": [a.loss for a in steps] == [b.loss for b in records],
            "escaped": set(store.escaped),
            "held": (sum(leaf.numel for leaf in store.leaves), store.dim),
        }
    try:
        sharded.step(shared(lambda part, rows=None: 0.0, peers, weights=[0.25, 0.25, 0.5]))
    except ValueError as e:
        found["uneven"] = str(e)
    try:
        Run(store, methods.sparse_mezo(), seed=5)
        found["rows"] = "accepted"
    except TypeError as e:
        found["rows"] = str(e)

    net = network(width=8)
    plain = Run(Store(dict(network(width=8).named_parameters())), METHODS["two points"](), seed=5)
    parallelize_module(net, mesh, {"0": ColwiseParallel(), "3": RowwiseParallel()})
    store = Store(dict(net.named_parameters()))
    sharded = Run(store, METHODS["two points"](), seed=5)
    point = Vector(((Noise(Kind.NORMAL, 3), 0.1), (Noise(Kind.SIGN, 4), -0.2)))
    _, loss = cut(1)
    here, there = ([sequential(f)(s, [Query(point)], 1)[0]] for s, f in (
        (store, lambda: loss(net, 0)), (plain.store, lambda: loss(plain_net(plain), 0)))
    )  # fmt: skip
    found["tensor parallel loss"] = (here[0], there[0])
    steps = [sharded.step(sequential(lambda: loss(net, 0))) for _ in range(6)]
    plain.replay(steps)
    reference = {leaf.name: leaf.tensor for leaf in plain.store.leaves}
    found["tensor parallel"] = {
        "weights": [n for n, p in net.named_parameters() if not torch.equal(gathered(p), reference[n])],
        "escaped": set(store.escaped),
        "boxes": {leaf.name: leaf.portion and leaf.portion.box for leaf in store.leaves},
    }
    return found


def doors(peers: Peers) -> dict[str, Any]:
    """`ZOOptimizer` under DDP, by a closure and by `shared`, and on weights that FSDP splits: warnings and weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def warned(opt: ZOOptimizer, step: Callable[[], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(4):
                step()
        return [str(w.message) for w in caught]

    found: dict[str, Any] = {}
    own, equal = slice(peers.rank, None, 2), [1 / peers.world] * peers.world
    for way in ("closure", "hybrid", "shared"):
        net = network()
        model = nn.parallel.DistributedDataParallel(net)
        zo = ZOOptimizer(list(net[:3].parameters()) if way == "hybrid" else model.parameters(), METHODS["two points"]())
        opt: Any = Hybrid(zo, torch.optim.SGD(net[3:].parameters(), 0.0)) if way == "hybrid" else zo

        def loss(part: int = 0, rows: object = None, model: nn.Module = model) -> Tensor:
            return nn.functional.mse_loss(model(X[own]), Y[own])

        step = (lambda opt=opt, loss=loss: opt.step(loss)) if way != "shared" else (
            lambda opt=opt, loss=loss: opt.step_by(shared(loss, peers, weights=equal)))  # fmt: skip
        found[way] = warned(opt, step), zo.store.digest()
    net = network()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    opt = ZOOptimizer(net.parameters(), METHODS["two points"]())
    follow(net, opt.store)
    found["fsdp"] = warned(opt, lambda: opt.step(lambda: nn.functional.mse_loss(net(X), Y))), ""
    return found


def plain_net(run: Run[Any]) -> nn.Module:
    """A network around the tensors of a run that is not split."""
    net = network(width=8)
    for name, leaf in ((leaf.name, leaf) for leaf in run.store.leaves):
        owner, _, attribute = name.rpartition(".")
        setattr(net.get_submodule(owner), attribute, leaf.tensor)
    return net


def gathered(p: Tensor) -> Tensor:
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def different(net: nn.Module, whole: nn.Module) -> list[str]:
    """Names of the parameters that are not equal in all bits."""
    reference = dict(whole.named_parameters())
    return [name for name, p in net.named_parameters() if not torch.equal(gathered(p), reference[name])]


def lost(peers: Peers, heard: Path | None = None) -> str:
    """What each rank reports when rank 1 takes no part in a step: it is silent until `heard` exists, or it is gone.

    Rank 0 makes `heard` when it has been told. Rank 1 waits a minute at most, so that a fault here is no hang.
    """
    if peers.rank == 1:
        if heard is None:
            dist.destroy_process_group()
            return "gone"
        for _ in range(600):
            if heard.exists():
                return "rank 0 knew while this rank was silent"
            time.sleep(0.1)
        return "rank 0 waited for this rank"
    try:
        trained(peers, steps=1)
    except PeersError as e:
        return str(e)
    finally:
        if heard is not None:
            heard.touch()
    return "nothing"


def work(rank: int, world: int, folder: Path) -> None:
    """All of it, in one process; the results as a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    peers = Peers(dist.group.WORLD)
    found = {
        "sharing": sharing(Peers(peers.group)),
        "failing": failing(Peers(peers.group)),
        "differing": differing(Peers(peers.group)),
        "late": late(Peers(peers.group), folder),
        "split": split_weights(Peers(peers.group)),
        "doors": doors(Peers(peers.group)),
        "silent": lost(Peers(dist.new_group(timeout=timedelta(seconds=1))), folder / "heard"),
        "gone": lost(Peers(peers.group)),
    }
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def run_two(folder: Path) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    multiprocessing.spawn(work, (2, folder), 2)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]
