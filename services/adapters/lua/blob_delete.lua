#!lua flags=allow-oom
-- Deletes every blob of a job and gives its room back.
-- ARGV: job
-- Returns how many there were

local job = ARGV[1]
local owner = redis.call('HGET', 'lensd:blobs:' .. job, 'owner')
redis.call('HDEL', 'lensd:blobs:' .. job, 'owner')
local blobs = redis.call('HGETALL', 'lensd:blobs:' .. job)
local own = owner and 'lensd:blob-bytes:' .. owner
for i = 1, #blobs, 2 do
  redis.call('UNLINK', 'lensd:blob:' .. blobs[i])
  redis.call('DECRBY', 'lensd:blob-bytes', blobs[i + 1])
  if own then redis.call('DECRBY', own, blobs[i + 1]) end
end
if own and tonumber(redis.call('GET', own) or 0) <= 0 then redis.call('DEL', own) end
redis.call('DEL', 'lensd:blobs:' .. job)
redis.call('SREM', 'lensd:blobs', job)
return #blobs / 2
