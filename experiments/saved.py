"""What a seed of a run has left in its folder, for the commands that read it: its policy, the run itself."""

import json
import warnings
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from agemem_jax.config import ConfigError, derive, from_json
from agemem_jax.errors import InputError
from agemem_jax.models import lora, qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.training import identity as identities
from agemem_jax.training.checkpoint import MANIFEST, checkpoints, damage
from agemem_jax.training.setup import Run, build, run_mesh
from agemem_jax.training.state import param_shardings


def newest(run: Path, flag: str = "run") -> Path:
    """The newest whole checkpoint of a seed, whose folder a flag names. Raises InputError if there is none."""
    folder = run / "checkpoints"
    for path in checkpoints(folder) if folder.is_dir() else []:
        problem = damage(path)
        if problem is None:
            return path
        warnings.warn(f"skipping checkpoint {path}: {problem}", stacklevel=2)
    seeds = ", ".join(sorted(str(path) for path in run.glob("seed_*")))
    example = f"give the folder of one seed, as in --{flag}=runs/tiny/seed_0"
    hint = f"give one of its seeds: {seeds}" if seeds else example
    raise InputError(f"--{flag}={run}: no whole checkpoint in {folder}; {hint}")


def restore_params(checkpoint: Path, model: ModelConfig, mesh: Mesh) -> dict:
    """What was trained alone, stored over the mesh; the optimizer's state is not read."""
    where = lora.trained(param_shardings(model, mesh), model.lora)
    shapes = jax.eval_shape(lambda key: lora.trained(qwen.init_params(model, key), model.lora), jax.random.key(0))
    wanted = {f".params{jax.tree_util.keystr(p)}": x for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
    saved = json.loads((checkpoint / "arrays.json").read_text())
    for name in sorted(wanted.keys() | {name for name in saved if name.startswith(".params[")}):
        expected = f"{wanted[name].dtype}{list(wanted[name].shape)}" if name in wanted else "absent"
        if saved.get(name, "absent") != expected:
            raise InputError(
                f"checkpoint {checkpoint}: {name} is {saved.get(name, 'absent')}, and {expected} in the policy of its "
                "config; put the weights back that policy.weights named when the run began"
            )
    like = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, where)
    item = {"params": like}
    how = ocp.checkpoint_utils.construct_restore_args(item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        try:
            return reader.restore(checkpoint.resolve() / "state", args=args)["params"]
        except Exception as error:
            if (checkpoint / MANIFEST).exists():
                raise
            raise InputError(f"checkpoint {checkpoint} was dropped by its run, which goes on; try again") from error


def reopened(checkpoint: Path) -> Run:
    """The run of a checkpoint, to be evaluated with a trace of every row.

    Raises InputError if what it read has changed since.
    """
    config = from_json((checkpoint / "config.json").read_text())
    config.train.traces = derive(config).rows
    fit_devices(config)
    run = build(config)
    was = identities.read(checkpoint / identities.FILE)
    if was is not None:
        remedy = "or take the version of agemem_jax that trained it"
        identities.check(f"checkpoint {checkpoint}", was, run.identity, config, config, remedy)
    return run


def fit_devices(config: ConfigDict) -> None:
    """Sets the mesh to one device where the run's does not fit those at hand."""
    try:
        run_mesh(config)
    except ConfigError:
        config.mesh.data = config.mesh.fsdp = config.mesh.tensor = 1
