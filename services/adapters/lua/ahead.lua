#!lua flags=no-writes
-- About how many jobs start before a queued one, if none came after it: the claim's own order, between its owners as
-- their turns stand. The first OWNERS of a line are looked at; those behind count as these do on average, as far as so
-- many jobs wait at all.
-- ARGV: policy, job
-- Returns the number, or false if the job is not queued

local OWNERS = 500

-- How many jobs of a group go before the one of `owner` that has `rank` others of its own before it; all, without one.
local function before(group, owner, rank)
  local turns = 'lensd:turns:' .. group
  local found, passed_own, sum, others = redis.call('LRANGE', turns, 0, OWNERS - 1), false, 0, 0
  for _, other in ipairs(found) do
    if other == owner then
      passed_own = true
    else
      local goes_first = rank + (passed_own and 0 or 1)
      sum = sum + math.min(redis.call('ZCARD', 'lensd:line:' .. group .. ':' .. other), goes_first)
      others = others + 1
    end
  end
  if #found == OWNERS then sum = sum * (redis.call('LLEN', turns) - (owner and 1 or 0)) / others end
  return math.floor(sum)
end

local id = ARGV[2]
local owner, pool, priority, size, status = fields(id, 'owner', 'pool', 'priority', 'size', 'status')
if status ~= 'queued' or not (owner and pool and priority and size) then return false end
local group = group_of(pool, priority, size)
local rank = redis.call('ZRANK', 'lensd:line:' .. group .. ':' .. owner, id)
if not rank then return false end
local ahead = rank + before(group, owner, rank)
if priority == 'batch' then
  for _, other in ipairs({'small', 'large'}) do
    ahead = ahead + before(group_of(pool, 'interactive', other), nil, math.huge)
  end
end
return math.min(ahead, redis.call('ZCARD', 'lensd:queued:' .. pool) - 1)
