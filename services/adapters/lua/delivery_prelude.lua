-- What the scripts of the queue of messages share. All times are microseconds of the server's clock.
--
--   lensd:webhook:<id>                hash: an endpoint: owner, url, description, created_at, secret; while one
--                                     retires, that one and until when; since when it is disabled
--   lensd:webhooks:<owner>            sorted set: the owner's endpoints by creation
--   lensd:outcomes:<endpoint>         list: how its latest deliveries went, newest first, as JSON
--   lensd:delivery:<message>          hash: webhook, job (or the batch that it is about), attempt
--   lensd:deliveries:<owner>          sorted set: the owner's messages by the time each is due; one that a courier
--                                     holds is due when its lease ends
--   lensd:delivering:<owner>          sorted set: the messages that couriers hold, by the end of the lease
--   lensd:deliveries                  sorted set: owners by the time at which there next is something to do for them

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Lua's own conversion would round a number as long as a time.
local function digits(number) return string.format('%.0f', number) end

local function first_of(queue) return tonumber(redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2]) end

-- Puts the owner where it belongs among the others. One that has as many under way as may be waits for a lease to end.
local function line_up(owner, share)
  local due = first_of('lensd:deliveries:' .. owner)
  if not due then
    redis.call('ZREM', 'lensd:deliveries', owner)
    return
  end
  local held = 'lensd:delivering:' .. owner
  if redis.call('ZCARD', held) >= share then due = math.max(due, first_of(held)) end
  redis.call('ZADD', 'lensd:deliveries', digits(math.max(due, now)), owner)
end
