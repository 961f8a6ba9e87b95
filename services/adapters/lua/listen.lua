#!lua flags=allow-oom
-- Says that a worker listens for the next ring of its pool.
-- ARGV: pool, worker, microseconds for which this holds
-- Returns nothing

local clock = redis.call('TIME')
local until_when = string.format('%.0f', clock[1] * 1000000 + clock[2] + ARGV[3])
redis.call('ZADD', 'lensd:listening:' .. ARGV[1], until_when, ARGV[2])
