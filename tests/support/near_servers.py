"""Policy servers without a network between: a copy of the weights in this process, and a diary of what was asked."""

import threading
import time

from sdar.samplers import ServerSampler, TorchSampler


class Servers(ServerSampler):
    """Samples with weights of its own; fails where two rollouts, or a rollout and a push, happen at once."""

    def __init__(self, policy, pause=0.0, **kwargs):
        super().__init__(["http://nowhere:1"], **{"max_new_tokens": 6} | kwargs)
        self.network, self.within, self.pause = policy.load_model(), TorchSampler(max_new_tokens=6), pause
        self.version, self.diary, self.asleep = None, [], threading.Lock()

    def bind(self, tokenizer, stop_ids, context):
        TorchSampler.bind(self, tokenizer, stop_ids, context)
        self.within.bind(tokenizer, stop_ids, context)

    def load(self, version, weights):
        weights = {name: tensor.clone() for name, tensor in weights}
        assert threading.current_thread() is threading.main_thread()  # handing over weights may need all ranks
        assert not self.asleep.locked(), "weights were pushed while a rollout was on its way"
        if version != self.version:
            self.network.load_state_dict(weights)
            self.version = version
            self.diary.append(("load", version))

    def reset(self):
        self.within.reset()

    def sample(self, model, prompts, draws):
        assert self.asleep.acquire(blocking=False), "two rollouts at once"
        try:
            time.sleep(self.pause)
            self.within.max_new_tokens = self.max_new_tokens
            thread = threading.current_thread().name
            self.diary.append(("sample", self.version, thread, sorted({(d.task, d.attempt) for d in draws}), draws[0].turn))
            return self.within.sample(self.network, prompts, draws)
        finally:
            self.asleep.release()

    def release(self):
        pass

    def metrics(self):
        return {}

    def close(self):
        pass
