"""Every registered environment, made with the settings that tests can afford."""

from sdar import registry
from sdar.parts import Environment

registry.load_parts()
SETTINGS = {  # of those that cannot be made without any, or that take long by default
    "GymnasiumEnv": {"env_id": "sdar.gym:sdar/Household-v0", "horizon": 12, "options": {"horizon": 12}},
}
ABSENT = {  # those that need what a test cannot always have, and have tests of their own
    "ALFWorldEnv",  # the original package, in an environment of its own
    "WebShopHTTPEnv",  # a server
}
OURS = [
    cls for cls in registry.parts("environments").values() if cls.__module__.startswith("sdar.")
]  # other tests register some, too
WORLDS = {cls.__name__: cls for cls in OURS if cls.__name__ not in ABSENT}


def made(name: str, **settings: object) -> Environment:
    return WORLDS[name](**SETTINGS.get(name, {}) | settings)
