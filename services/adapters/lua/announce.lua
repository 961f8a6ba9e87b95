#!lua flags=allow-oom
-- Says that a worker lives; also when memory is short, or its pool would seem to have none.
-- ARGV: worker, its state (JSON), milliseconds for which this holds
-- Returns nothing

redis.call('SADD', 'lensd:workers', ARGV[1])
redis.call('SET', 'lensd:worker:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
