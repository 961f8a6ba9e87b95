#!lua flags=allow-oom
-- Ends a keeper's turn; the batch waits for its next one, at once if it became due meanwhile.
-- ARGV: policy, batch, fence, from when on (microseconds from now)
-- Returns nothing

local _, batch, fence, after = unpack(ARGV)
if not has_turn(batch, fence) then return end
local due = redis.call('ZSCORE', 'lensd:batches-due', batch)
if due and tonumber(due) > now then redis.call('ZADD', 'lensd:batches-due', digits(now + after), batch) end
