"""What a Redis user needs to be allowed for lensd, its Celery queues included; `docs/operating.md` shows it."""

ACL_RULES = (
    "resetchannels ~lensd:* ~lensd.* ~_kombu.* ~unacked* "
    "-@all +@read +@write +@connection +@transaction -@dangerous -@admin +evalsha +script|load +info +time"
)
