#!lua flags=allow-oom
-- Deletes every blob of a job and gives its room back.
-- ARGV: job
-- Returns how many there were

local job = ARGV[1]
local blobs = redis.call('HGETALL', 'lensd:blobs:' .. job)
for i = 1, #blobs, 2 do
  redis.call('UNLINK', 'lensd:blob:' .. blobs[i])
  redis.call('DECRBY', 'lensd:blob-bytes', blobs[i + 1])
end
redis.call('DEL', 'lensd:blobs:' .. job)
redis.call('SREM', 'lensd:blobs', job)
return #blobs / 2
