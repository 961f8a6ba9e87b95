#!lua
-- Stores a job that has succeeded as it is made, with a copy of another's result.
-- ARGV: policy, job, owner, pool, priority, size, head (JSON), ties (JSON), idempotency key's name or '', request digest,
--       entry, the other job, result (JSON)
-- Returns {job, {field, value, …}}, the job perhaps one that an earlier request made | 'conflict' | false: it is to run

local _, id, owner, pool, priority, size, head, ties, reservation, digest, entry, source, result = unpack(ARGV)
local function answer(job) return {job, redis.call('HGETALL', 'lensd:job:' .. job)} end

if fields(id, 'status') then return answer(id) end
if shut_by_batch(id, cjson.decode(ties).batch) then return false end
local refusal, earlier = earlier_request(reservation, digest)
if refusal then return earlier and answer(earlier) or refusal end
-- Where it is to run after all, copies of blobs may lie there already: they are spared until it has its record.
local arriving = 'lensd:arriving:' .. id
if redis.call('GET', arriving) ~= source .. ' ' .. owner then return false end
if redis.call('GET', 'lensd:cached:' .. entry) ~= source then return false end

redis.call('DEL', arriving)
put_record(id, owner, pool, priority, size, head, ties, reservation, digest)
redis.call('INCR', 'lensd:answers:' .. owner)
local done, planned = fields(source, 'done', 'planned')
finish(id, 'succeeded', 'result', result, 'cached', 1, 'done', done or 0, 'planned', planned or 0)
return answer(id)
