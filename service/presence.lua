-- Keeps who is on which channel, and decides what is to be told of it, once, whoever tells it.
--
-- KEYS[1]  who has come or may have left: a sorted set of <channel>/<user>, by the time in
--          milliseconds when that is to be looked at
-- KEYS[2]  workers that hold users, a set
-- KEYS[3]  the users that the worker of `hold` has streams of, a set of <channel>/<user>
-- KEYS[4+] for each user of this call the users of the channel: a hash of user -> entry
-- ARGV[1]  hold, claim, told or forget
-- ARGV[2]  hold, told: milliseconds that a user without streams stays; claim: milliseconds that
--          whoever claims a change has for telling it
-- ARGV[3]  hold, forget: the worker; else ''
-- ARGV[4+] for each user four: channel, user, and for `hold` how many streams of that user the
--          worker has and a text about the user; for `told` the generation and the change that were
--          claimed. `forget` has none
-- Returns for `claim` of each change that is now the caller's to tell: the number of its user,
-- 'join' or 'leave', its generation and the text.
--
-- An entry has `w`, the streams by worker, `i`, the text, `g`, its generation, made when the user
-- comes, and `s`, its state: new -> joining (somebody tells it) -> here -> leaving (somebody tells
-- it) -> gone, or new again. Who tells a change may die; then another claims it later and tells the
-- same. So telling has to be idempotent by channel, user, generation and change.

local USER_ARGUMENTS = 4
local operation, milliseconds, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function look_at(member, moment)
  if moment then
    redis.call('ZADD', KEYS[1], string.format('%.0f', moment), member)
  else
    redis.call('ZREM', KEYS[1], member)
  end
end

local SAME = {} -- there is nothing to write

local function is_held(entry) return next(entry.w) ~= nil end

local function come(entry)
  entry.s, entry.g = 'new', time[1] .. '-' .. time[2]
end

local function hold(entry, member, streams, text)
  streams = tonumber(streams)
  if streams > 0 then
    redis.call('SADD', KEYS[3], member)
    redis.call('SADD', KEYS[2], worker)
  else
    redis.call('SREM', KEYS[3], member)
    if not entry then return nil end
  end
  if not entry then
    entry = {w = {}}
    come(entry)
    look_at(member, now)
  end
  local was_held = is_held(entry)
  entry.w[worker] = streams > 0 and streams or nil
  if streams > 0 then entry.i = text end
  if entry.s == 'here' and is_held(entry) ~= was_held then
    look_at(member, was_held and now + milliseconds)
  end
  return entry
end

local function claim(entry, member)
  local moment = redis.call('ZSCORE', KEYS[1], member)
  if not moment or tonumber(moment) > now then return SAME end
  if not entry or (entry.s == 'new' and not is_held(entry)) then
    look_at(member)
    return nil
  end
  if entry.s == 'here' and is_held(entry) then
    look_at(member)
    return SAME
  end
  if entry.s == 'new' then entry.s = 'joining' end
  if entry.s == 'here' then entry.s = 'leaving' end
  look_at(member, now + milliseconds)
  return entry, entry.s == 'joining' and 'join' or 'leave'
end

local function told(entry, member, generation, change)
  if not entry or entry.g ~= generation then return SAME end
  if entry.s == 'joining' and change == 'join' then
    entry.s = 'here'
    look_at(member, not is_held(entry) and now + milliseconds)
  elseif entry.s == 'leaving' and change == 'leave' then
    if not is_held(entry) then
      look_at(member)
      return nil
    end
    come(entry)
    look_at(member, now)
  end
  return entry
end

if operation == 'forget' and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('SREM', KEYS[2], worker)
end

local does = {hold = hold, claim = claim, told = told}
local changes = {}
for number = 1, #KEYS - 3 do
  local key, first = KEYS[3 + number], 4 + (number - 1) * USER_ARGUMENTS
  local channel, user = ARGV[first], ARGV[first + 1]
  local text = redis.call('HGET', key, user)
  local entry, change = does[operation](text and cjson.decode(text), channel .. '/' .. user,
    ARGV[first + 2], ARGV[first + 3])
  if not entry then
    redis.call('HDEL', key, user)
  elseif entry ~= SAME then
    redis.call('HSET', key, user, cjson.encode(entry))
  end
  if change then changes[#changes + 1] = {number - 1, change, entry.g, entry.i} end
end
return changes
