#!lua flags=allow-oom
-- Puts an event on record; the oldest ones make room. Also when memory is short: a revocation is never left out.
-- ARGV: event (JSON), how many to keep
-- Returns the entry's id

return redis.call('XADD', 'lensd:audit', 'MAXLEN', '~', ARGV[2], '*', 'event', ARGV[1])
