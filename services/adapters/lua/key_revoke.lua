#!lua flags=allow-oom
-- Deletes an API key, unless it is the last one that lives and has the scope admin.
-- ARGV: id, the gateway's time as 2030-01-31T23:59:59
-- Returns 'done', 'unknown' or 'last_admin'

local id, today = ARGV[1], ARGV[2]

local function administers(stored)
  local key = cjson.decode(stored)
  local ends = key.expires_at
  if ends and ends ~= cjson.null and string.sub(ends, 1, 19) < today then return false end
  for _, scope in ipairs(key.scopes) do
    if scope == 'admin' then return true end
  end
  return false
end

local stored = redis.call('HGET', 'lensd:keys', id)
if not stored then return 'unknown' end
if administers(stored) then
  local admins = 0
  for _, key in ipairs(redis.call('HVALS', 'lensd:keys')) do
    if administers(key) then admins = admins + 1 end
  end
  if admins == 1 then return 'last_admin' end
end
redis.call('HDEL', 'lensd:keys', id)
redis.call('HDEL', 'lensd:keys:used', id)
redis.call('DEL', 'lensd:rate:' .. id)
return 'done'
