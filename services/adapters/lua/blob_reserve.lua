#!lua
-- Makes room for a blob and notes whose it is, before its chunks are written.
-- ARGV: key, job, bytes, bound of all blobs together
-- Returns whether there is room

local key, job, nbytes, bound = unpack(ARGV)
if redis.call('HEXISTS', 'lensd:blobs:' .. job, key) == 1 then return true end
local total = tonumber(redis.call('GET', 'lensd:blob-bytes') or 0)
if total + tonumber(nbytes) > tonumber(bound) then return false end
redis.call('HSET', 'lensd:blobs:' .. job, key, nbytes)
redis.call('SADD', 'lensd:blobs', job)
redis.call('INCRBY', 'lensd:blob-bytes', nbytes)
return true
