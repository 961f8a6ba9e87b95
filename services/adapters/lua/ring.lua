#!lua flags=allow-oom
-- Rings at a worker that listens; each ring goes to one, which then listens no more.
-- ARGV: pool, milliseconds for which an unheard ring is kept, the list of messages that rang the long way
-- Returns -1 if one listens, else how many of those messages wait

local pool, kept, messages = unpack(ARGV)
local listening = 'lensd:listening:' .. pool
local clock = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', listening, '-inf', string.format('%.0f', clock[1] * 1000000 + clock[2]))
local worker = redis.call('ZPOPMAX', listening)[1]
if not worker then return redis.call('LLEN', messages) end
redis.call('RPUSH', 'lensd:bell:' .. worker, 1)
redis.call('PEXPIRE', 'lensd:bell:' .. worker, kept)
return -1
