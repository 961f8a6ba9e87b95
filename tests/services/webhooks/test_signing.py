"""Signatures, held against the vector that the Standard Webhooks libraries test themselves with."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

from services.webhooks.endpoint import Endpoint, RetiringSecret, key_of, new_secret
from services.webhooks.signing import signed_headers

NOW = datetime(2021, 2, 25, 14, 55, 30, 900_000, tzinfo=UTC)


def test_a_message_is_signed_as_the_specification_says() -> None:
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1_614_265_330, UTC),
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_every_secret_signs_and_each_signature_stands_alone() -> None:
    secrets = [new_secret(), new_secret()]
    headers = signed_headers("msg_a", NOW, b"{}", secrets)
    content = f"msg_a.{headers['webhook-timestamp']}.".encode() + b"{}"
    for secret, signature in zip(secrets, headers["webhook-signature"].split(" "), strict=True):
        version, _, code = signature.partition(",")
        assert version == "v1"
        assert base64.b64decode(code) == hmac.digest(key_of(secret), content, hashlib.sha256)


def test_a_secret_is_random_and_of_a_length_that_the_specification_allows() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("whsec_") and 24 <= len(key_of(secret)) <= 64 for secret in secrets)


def test_the_secret_before_a_rotation_signs_until_its_time_and_no_secret_is_ever_shown() -> None:
    endpoint = Endpoint(
        id="wh_" + "a" * 26,
        owner="ada",
        url="https://hooks.example.com/",
        description=None,
        secret="whsec_new",
        retiring=RetiringSecret(secret="whsec_old", until=NOW),
        created_at=NOW,
    )
    assert endpoint.signing_secrets(NOW - timedelta(seconds=1)) == ("whsec_new", "whsec_old")
    assert endpoint.signing_secrets(NOW) == ("whsec_new",)
    assert "whsec" not in repr(endpoint)
