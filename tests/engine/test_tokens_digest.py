from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest

TOKEN_IDS = [3, 1, 4, 1, 5, 2**31, 0]


def test_the_digest_does_not_depend_on_how_the_ids_were_split() -> None:
    whole = extend_digest(INITIAL_DIGEST, TOKEN_IDS)
    for cut in range(len(TOKEN_IDS) + 1):
        assert extend_digest(extend_digest(INITIAL_DIGEST, TOKEN_IDS[:cut]), TOKEN_IDS[cut:]) == whole


def test_another_order_another_id_and_another_length_have_other_digests() -> None:
    histories = [[], [0], [0, 0], [1, 2], [2, 1], [258], [1, 2, 0]]
    assert len({extend_digest(INITIAL_DIGEST, history) for history in histories}) == len(histories)


def test_the_digest_of_a_known_history_never_changes() -> None:
    assert extend_digest(INITIAL_DIGEST, [1, 2, 3]).hex() == "11229640bc92a4b66c509711ef9db9c6"
