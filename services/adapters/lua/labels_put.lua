#!lua
-- Stores labels, all or none.
-- ARGV: bound of labels of one set, bound of its bytes, bound of the bytes of all sets, then for each label:
--       its set ('of:<owner>:<sae>' or 'shared:<sae>'), its feature, the label (JSON)
-- Returns 'stored', 'too many' or 'no room'

local max_labels, max_bytes, max_in_all = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local added, grown, total = {}, {}, 0
for i = 4, #ARGV, 3 do
  local set, feature, label = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local before = redis.call('HSTRLEN', 'lensd:labels:' .. set, feature)
  added[set] = (added[set] or 0) + (before == 0 and 1 or 0)
  grown[set] = (grown[set] or 0) + #label - before
  total = total + #label - before
end

for set, more in pairs(grown) do
  local bytes = tonumber(redis.call('HGET', 'lensd:label-bytes', set) or 0)
  local labels = redis.call('HLEN', 'lensd:labels:' .. set)
  if labels + added[set] > max_labels or bytes + more > max_bytes then return 'too many' end
end
if tonumber(redis.call('GET', 'lensd:label-bytes-in-all') or 0) + total > max_in_all then return 'no room' end

for i = 4, #ARGV, 3 do redis.call('HSET', 'lensd:labels:' .. ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
for set, more in pairs(grown) do redis.call('HINCRBY', 'lensd:label-bytes', set, more) end
redis.call('INCRBY', 'lensd:label-bytes-in-all', total)
return 'stored'
