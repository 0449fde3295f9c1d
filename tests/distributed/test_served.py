"""A teacher behind servers on several ranks: each asks for a share of the rows, and training is that of one process."""

import torch
from launch import run
from policy_servers import policy_servers, sharp_policy
from tiny_policy import TinyPolicy


def test_ranks_with_a_served_teacher_end_where_one_process_with_its_own_ends(tmp_path):
    policy = TinyPolicy()
    policy.load_model().save_pretrained(tmp_path / "plain")
    policy.load_tokenizer().save_pretrained(tmp_path / "plain")
    folder = sharp_policy(tmp_path / "plain", tmp_path / "teacher", 3)
    with policy_servers(folder, 2) as servers:
        urls = [server.url for server in servers]
        run(1, "rank_served.py", tmp_path / "one", "one", folder, folder=tmp_path, deadline=240)
        run(2, "rank_served.py", tmp_path / "two", "ddp", folder, *urls, folder=tmp_path, deadline=240)
        rows = [server.health()["counts"]["scored_rows"] for server in servers]
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert len(one["losses"]) > 1 and all(rows)
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-5)
    starts = 2  # each rank asks each server for a few tokens, with a client of its own
    assert all(int((tmp_path / f"two.asked.{rank}").read_text()) >= 2 for rank in range(2)) and sum(rows) > 2 * starts
