#!lua flags=allow-oom
-- Notes what validating the next lines of a batch came to; a second time changes nothing.
-- ARGV: policy, batch, fence, lines before these, offset and number after them, what they cost,
--       then for each: '1' if it is wrong or '0', the line (JSON)
-- Returns whether the turn is its own

local _, batch, fence, before, offset, number, cost = unpack(ARGV)
if not has_turn(batch, fence, 'validating') then return false end
local checked = batch_fields(batch, 'checked')
if checked ~= before then return tonumber(checked) > tonumber(before) end
local invalid, bytes = 0, 0
for i = 8, #ARGV, 2 do
  redis.call('RPUSH', 'lensd:batch-lines:' .. batch, ARGV[i + 1])
  bytes = bytes + #ARGV[i + 1]
  if ARGV[i] == '1' then
    invalid = invalid + 1
    show_wrong(batch, ARGV[i + 1])
  end
end
batch_set(batch, 'checked', before + (#ARGV - 7) / 2, 'offset', offset, 'number', number)
redis.call('HINCRBY', 'lensd:batch:' .. batch, 'cost', cost)
redis.call('HINCRBY', 'lensd:batch:' .. batch, 'invalid', invalid)
redis.call('HINCRBY', 'lensd:batch:' .. batch, 'bytes', bytes)
keep(batch_fields(batch, 'owner'), bytes)
return true
