#!lua
-- Finds the job whose result answers a new one, unless that is there already, its idempotency key is taken, or the store
-- is to hold no more answers. While the result is copied, the new job's blobs are spared by the sweep.
-- ARGV: policy, job, owner, entry, idempotency key's name or '', microseconds that the copying may take
-- Returns the other job or false

local _, id, owner, entry, reservation, patience = unpack(ARGV)
if fields(id, 'status') or earlier_request(reservation) then return false end
local source = redis.call('GET', 'lensd:cached:' .. entry)
if not source or fields(source, 'status') ~= 'succeeded' then return false end
local answers = tonumber(redis.call('GET', 'lensd:answers:' .. owner)) or 0
if answers >= policy.max_answers or keeps_too_much(owner) or memory_is_short() then return false end
redis.call('SET', 'lensd:arriving:' .. id, source .. ' ' .. owner, 'PX', digits(patience / 1000))
return source
