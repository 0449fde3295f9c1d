"""`sdar fit --help` and its like from the sources: the parser of a run, made of outlines, which can print its help and nothing else."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Union

from jsonargparse import ActionConfigFile

from sdar import outline, registry
from sdar.cli.commands import COMMANDS, GIVEN_BY_US
from sdar.cli.roots import SOURCE, TRAINER_DEFAULTS
from sdar.command_help import HelpFormatter, Ordered

CONFIG = "Path to a configuration file in json or yaml format."
SEED = "Set to an int to run seed_everything with this value before classes instantiation.Set to True to use a random seed."
"""Lightning's words, as the rest of the arguments of its Trainer."""


def help_of_run(command: str) -> str:
    """What `sdar COMMAND --help` prints; a test compares it with the parser's own.

    Raises:
        UnreadableError: the sources do not tell it.
    """
    trainer = _stand_in(registry.locate("sdar.cli.trainer.AgentTrainer"), command)
    checkpoint = _stand_in(registry.locate("sdar.training.checkpoints.RunCheckpoint"))
    alarms = _stand_in(registry.locate("sdar.alarms.watch.Alarms"))
    method, tasks = registry.kinds()["strategies"], registry.locate(SOURCE)
    parser = Ordered(
        prog=f"sdar {command}",
        description=COMMANDS[command].text,
        usage=f"sdar {command} [-c FILE ...] [--KEY VALUE ...]",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help=CONFIG)
    parser.add_argument("--seed_everything", type=Union[bool, int], default=0, help=SEED)  # noqa: UP007  (Lightning's)
    with _without_modules():
        parser.add_class_arguments(trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True)
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        parser.add_subclass_arguments(method, "model", fail_untyped=False, required=True)
        parser.add_subclass_arguments(tasks, "data", fail_untyped=False, required=True)
        parser.add_class_arguments(checkpoint, "checkpoint", instantiate=False)
        parser.add_class_arguments(alarms, "alarms", instantiate=False)
        parser.add_method_arguments(
            trainer, command, skip={*GIVEN_BY_US} & {*inspect.signature(getattr(trainer, command)).parameters}
        )
        next(action for action in parser._actions if action.dest == "data").default = {"class_path": "sdar.TaskModule"}
        return parser.format_help()


def _stand_in(cls: type, *methods: str) -> type:
    """An outline with functions that jsonargparse takes for such, which have the outline's arguments and documentation."""
    owners = (vars(owner).get("__init__") for owner in cls.__mro__)
    documented = next(function for function in owners if isinstance(function, outline.Function))
    functions = {"__init__": _function(documented, outline.arguments(cls))}
    functions |= {name: _function(getattr(cls, name), outline.arguments(getattr(cls, name))) for name in methods}
    made = type(cls.__name__, (cls,), {"__doc__": cls.__doc__, **functions})
    outline.MADE.append(made)
    return made


def _function(outlined: outline.Function, arguments: dict[str, outline.Parameter]) -> Any:
    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        return outlined(*args, **kwargs)

    kinds = inspect.Parameter
    taken = [kinds(p.name, kinds.KEYWORD_ONLY, default=p.default, annotation=p.annotation) for p in arguments.values()]
    function.__signature__ = inspect.Signature([kinds("self", kinds.POSITIONAL_OR_KEYWORD), *taken])  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in taken if p.annotation is not kinds.empty}
    function.__name__ = function.__qualname__ = outlined.__name__
    function.__doc__, function.__module__ = outlined.__doc__, "outline"
    return function


@contextmanager
def _without_modules() -> Iterator[None]:
    """jsonargparse imports the module that a class names, to look for a shorter path: outlines name none meanwhile."""
    before = {cls: cls.__module__ for cls in outline.MADE}
    try:
        for cls in before:
            cls.__module__ = "outline"
        yield
    except (ValueError, TypeError) as error:  # another release of jsonargparse may look at more than this one
        raise outline.UnreadableError(str(error)) from error
    finally:
        for cls, module in before.items():
            cls.__module__ = module
