#!lua flags=allow-oom
-- Notes how many lines are jobs now, but for those that turned out wrong; a second time changes nothing.
-- ARGV: policy, batch, fence, lines fed, then for each wrong one: its index, the line (JSON)
-- Returns whether the turn is its own

local _, batch, fence, fed = unpack(ARGV)
if not has_turn(batch, fence, 'running', 'cancelling') then return false end
if tonumber(batch_fields(batch, 'fed')) >= tonumber(fed) then return true end
for i = 5, #ARGV, 2 do
  redis.call('LSET', 'lensd:batch-lines:' .. batch, ARGV[i], ARGV[i + 1])
  redis.call('HINCRBY', 'lensd:batch:' .. batch, 'invalid', 1)
  show_wrong(batch, ARGV[i + 1])
end
batch_set(batch, 'fed', fed)
end_batch_if_done(batch)
return true
