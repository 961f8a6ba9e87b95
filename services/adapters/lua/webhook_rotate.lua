#!lua
-- Puts a secret in the place of the present one, which signs on for a while.
-- ARGV: id, the secret, until when the present one signs (microseconds) or ''
-- Returns whether there is such an endpoint

local id, secret, until_ = unpack(ARGV)
local key = 'lensd:webhook:' .. id
local present = redis.call('HGET', key, 'secret')
if not present then return false end
redis.call('HSET', key, 'secret', secret)
if until_ == '' then
  redis.call('HDEL', key, 'retiring', 'retiring_until')
else
  redis.call('HSET', key, 'retiring', present, 'retiring_until', until_)
end
return true
