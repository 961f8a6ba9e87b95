#!lua flags=allow-oom
-- Reserves custom ids for lines.
-- ARGV: policy, batch, fence, then for each: custom id, number of its line
-- Returns for each the line that it belongs to, or false if the turn is over

local _, batch, fence = unpack(ARGV)
if not has_turn(batch, fence, 'validating') then return false end
local names, owners = 'lensd:batch-names:' .. batch, {}
for i = 4, #ARGV, 2 do
  redis.call('HSETNX', names, ARGV[i], ARGV[i + 1])
  owners[#owners + 1] = redis.call('HGET', names, ARGV[i])
end
return owners
