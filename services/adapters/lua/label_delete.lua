#!lua
-- Forgets a label.
-- ARGV: its set ('of:<owner>:<sae>' or 'shared:<sae>'), its feature
-- Returns whether there was one

local set, feature = ARGV[1], ARGV[2]
local key = 'lensd:labels:' .. set
local bytes = redis.call('HSTRLEN', key, feature)
if redis.call('HDEL', key, feature) == 0 then return false end
redis.call('DECRBY', 'lensd:label-bytes-in-all', bytes)
if redis.call('EXISTS', key) == 1 then
  redis.call('HINCRBY', 'lensd:label-bytes', set, -bytes)
else
  redis.call('HDEL', 'lensd:label-bytes', set)
end
return true
