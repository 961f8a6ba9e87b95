#!lua
-- Stores an API key in the place of what it was.
-- ARGV: id, key as it was (JSON), key as it is to be (JSON)
-- Returns whether it was as said

if redis.call('HGET', 'lensd:keys', ARGV[1]) ~= ARGV[2] then return false end
redis.call('HSET', 'lensd:keys', ARGV[1], ARGV[3])
return true
