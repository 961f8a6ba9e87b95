#!lua flags=allow-oom
-- Lets a validated batch run, if its estimate is within what is left of its owner's day.
-- ARGV: policy, batch, fence, the owner's bound of a day's work or ''
-- Returns {'started'} | {'limited', its cost, charged today, microseconds until midnight}, or false if the turn is over

local _, batch, fence, bound = unpack(ARGV)
if has_turn(batch, fence, 'running') then return {'started'} end
if not has_turn(batch, fence, 'validating') then return false end
local owner, cost = batch_fields(batch, 'owner', 'cost')
local charged = tonumber(redis.call('GET', work_of(owner, today)) or 0)
if bound ~= '' and charged + cost > tonumber(bound) then
  return {'limited', cost, charged, digits((today + 1) * DAY - now)}
end
batch_set(batch, 'status', 'running', 'started_at', digits(now))
redis.call('DEL', 'lensd:batch-names:' .. batch)
return {'started'}
