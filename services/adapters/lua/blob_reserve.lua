#!lua
-- Makes room for a blob and notes whose it is, before its chunks are written.
-- ARGV: key, job (or batch), bytes, bound of all blobs together, of one owner's
-- Returns 'reserved', or what is full: 'all', 'share'

local key, job, nbytes, bound, share = unpack(ARGV)
local blobs = 'lensd:blobs:' .. job

-- Whose it is: what the record says, or who waits for the copy of a result; '' if nobody knows.
local function owner_of()
  local known = redis.call('HGET', blobs, 'owner')
  if known then return known end
  for _, kind in ipairs({'job', 'batch'}) do
    local owner = redis.pcall('HGET', 'lensd:' .. kind .. ':' .. job, 'owner')
    if type(owner) == 'string' then return owner end
  end
  local arriving = redis.call('GET', 'lensd:arriving:' .. job)
  return arriving and arriving:match('^%S+ (.+)$') or ''
end

local function holds(counter) return tonumber(redis.call('GET', counter) or 0) end

if redis.call('HEXISTS', blobs, key) == 1 then return 'reserved' end
local owner = owner_of()
local own = 'lensd:blob-bytes:' .. owner
if owner ~= '' and holds(own) + nbytes > tonumber(share) then return 'share' end
if holds('lensd:blob-bytes') + nbytes > tonumber(bound) then return 'all' end
redis.call('HSET', blobs, key, nbytes)
redis.call('SADD', 'lensd:blobs', job)
redis.call('INCRBY', 'lensd:blob-bytes', nbytes)
if owner ~= '' then
  redis.call('HSET', blobs, 'owner', owner)
  redis.call('INCRBY', own, nbytes)
end
return 'reserved'
