-- Decides a batch of requests, in order, each as a whole. Twin of decide.rs.
--
-- KEYS     the batch's counters, each once.
-- ARGV[1]  the batch's hits, back to back. Big-endian. Of each first its BASIS, which is enough where it is plain and fits:
--            algorithm      a byte: 1: sliding_window_log, 2: token_bucket, 3: fixed_window
--            run            2 bytes. 1 or more: its request is plain, that is: it takes hits, and no others of the batch are on
--                           its counters. A hit that is all of such a request stands for so many alike, on as many counters,
--                           this one and those that follow in KEYS. 0: it is not plain
--            more           a byte: 1: more hits of its plain request follow; run is 1
--            counter        2 bytes: its place in KEYS
--          and 7 bytes each (all times in us):
--            limit          what the counter may hold with it (of a bucket: the burst)
--            window
--            need           what must fit; of what is taken back, where it was recorded
--            amount         what is recorded or given back
--            pace           how it leaves: a log's tick; of a bucket, the hits that drain per window; of a fixed window, the tick
--                           of its leases, or 0
--          Then the rest, a byte each:
--            kind           0 enforce, 1 shadow, 2 quota, 3 quota in shadow
--            count_denied   1: recorded although denied
--            refund         1: given back instead of taken; 2: taken back from where an earlier request recorded it;
--                           3: granted, as many as fit, to be spent until the end of a tick
--            last           0: more hits of this descriptor follow; 1: the descriptor ends; 2: the request ends; 3: it ends, and
--                           the reply says where its hits are recorded
--          and 7 bytes each:
--            most           what the counter may hold with hits that are recorded although denied
--            pace_denied    the pace of those
-- Reply    one string; big-endian, 7 bytes a number where not said otherwise. For each request a byte: 0 admitted, 1 denied,
--          2 not decided. One that is not decided: the length of the error's text in 2 bytes, and the text. Else for each of
--          its hits: over (a byte, 1 or 0), the hits used after the request, and the wait in us plus 1 (0: never). Last, where
--          that is asked for, for each hit: where its counter recorded what was recorded now, and after that of a granted one
--          how many were granted and for how long, in us.
--
-- To make a function, and to free it, costs Redis 400 to 700 instructions, for each function in each call: most are made only
-- where there is more to decide than plain hits that fit.
--
-- An algorithm is two functions:
--   take(key, window, limit, need, amount, pace, leave_new, others, position)
--                              where a hit fits, and others(position), if given, says that the request's other hits did, records
--                              it, in Redis at once: the hits used then, what reset tells, and whether that made the key. Else nil
--                              twice, and, where it is this hit's own matter, the counter's state as of now, or nil and why not.
--                              (So too, whatever fits, where the state is to be put right in Redis. Under a limit of -1 nothing
--                              fits.) Where it would make the key and leave_new is set: false alone, and nothing is done
--   on_states()                the others, in a table:
--   held(key, window, ...)     the state, of what take has read
--   record(state, hits, pace)  records hits, of which there are some
--   refund(state, hits)        gives hits back, at most all
--   recorded_at(state)         where it records now: an entry's time, a window's number, a bucket's time
--   grant(state, hits, tick)   records hits, of which there are some, to be spent in so many us: until the end of the tick, or
--                              of the next one where a quarter of this one is left at most; the pace at which it records.
--                              A bucket grants nothing
--   take_back(state, hits, at) takes hits out that were recorded there, as if they had never been, as far as they still count
--   wait(state, hits)          until at most so many hits, fewer than now, are counted, in us
--   reset(state, limit)        what a hit that fits is told, in us; -1: never
--   write(state)               puts it into Redis
-- Of a state is known here:
--   functions                  that table
--   used                       the hits that count, whole ones
--   dirty                      it differs from what Redis holds
--   asked, sure                hits that this request takes if it is admitted; that it takes or gives back (-) in any case
local BASIS, HIT_SIZE = '>BHBHI7I7I7I7I7', 59

local algorithms = { false, false, false } -- by their numbers, made when first needed

local function algorithm(number)
  local made = algorithms[number]
  if not made then
    made = (number == 1 and sliding_window_log or number == 2 and token_bucket or fixed_window)()
    algorithms[number] = made
  end
  return made
end

-- Makes the functions for what is more than a plain hit that fits: one that takes plain requests, one that decides any request,
-- and one that puts into Redis what that changed.
local function make_decide(keys, batch, reply)
  local HIT = BASIS .. 'BBBBI7I7'
  local states = {} -- by their counters' places
  local hits = {} -- of one request; its tables serve the next one again

  -- Records hits although they are denied, as far as the counter can hold them.
  local function charge(state, amount, most, pace)
    local taken = math.min(amount, most - state.used)
    if taken > 0 then state.functions.record(state, taken, pace) end
  end

  local function say(text)
    reply[#reply + 1] = text
  end

  -- What a hit is told of its counter after the request: how long, plus 1, until `need` fits or, where it fitted, until more is
  -- left; 0: never.
  local function wait_of(state, over, limit, need)
    if not over then return state.functions.reset(state, limit) + 1
    elseif need > limit then return 0
    elseif state.used + need <= limit then return 1
    else return state.functions.wait(state, limit - need) + 1 end
  end

  -- Takes a count_denied hit into what later ones are judged on.
  local function foresee_charge(hit)
    local state = hit.state
    hit.charged = math.max(math.min(hit.amount, hit.most - (state.used + state.asked + state.sure)), 0)
    state.sure = state.sure + hit.charged
  end

  -- Takes a descriptor that is over out of what later ones are judged on, but for its count_denied hits.
  local function put_out(from, to)
    for i = from, to do
      local hit = hits[i]
      local state = hit.state
      hit.out = true
      state.sure = state.sure - hit.charged
      if not hit.over and hit.refund == 0 and hit.count_denied == 0 then state.asked = state.asked - hit.amount end
    end
    -- Anew, for there may be more room without the others.
    for i = from, to do
      local hit = hits[i]
      if hit.count_denied == 1 and hit.refund == 0 then foresee_charge(hit) end
    end
  end

  -- Records what the verdict leaves of a request's hits, and only then tallies them.
  local function conclude(count, admitted, say_where)
    say(pack('B', admitted and 0 or 1))
    for i = 1, count do
      local hit = hits[i]
      local state = hit.state
      if hit.refund == 1 then state.functions.refund(state, hit.amount)
      elseif hit.refund == 2 then state.functions.take_back(state, hit.amount, hit.need)
      elseif hit.refund == 3 then
        hit.granted = math.max(math.min(hit.amount, hit.limit - state.used), 0)
        hit.lasts = hit.granted > 0 and state.functions.grant(state, hit.granted, hit.pace) or 0
      elseif hit.amount > 0 then
        if admitted and not hit.out then state.functions.record(state, hit.amount, hit.pace)
        elseif hit.count_denied == 1 then charge(state, hit.amount, hit.most, hit.pace_denied) end
      end
      state.asked, state.sure = 0, 0
    end
    for i = 1, count do
      local hit = hits[i]
      local over, need = hit.over, hit.need
      if hit.refund == 3 then
        -- Who got less than was asked for is told when there will be more.
        over, need = hit.granted < hit.amount, 1
      elseif not admitted then
        -- What the request's earlier hits asked of the counter is asked again next time, unless it is counted already.
        need = need + hit.asked_before
      end
      say(pack('>BI7I7', over and 1 or 0, hit.state.used, wait_of(hit.state, over, hit.limit, need)))
    end
    if say_where then
      for i = 1, count do
        local hit = hits[i]
        say(pack('>I7', hit.state.functions.recorded_at(hit.state)))
        if hit.refund == 3 then say(pack('>I7I7', hit.granted, hit.lasts)) end
      end
    end
  end

  -- Decides the request whose first hit is at `position`; the position after it. Of a plain hit that does not fit comes with it
  -- the place of the counter that the hit stands for, and what take gives.
  local function decide(position, place, state, why)
    local count = 0
    local descriptor_from, descriptor_over = 1, false
    local denied, quotas, quotas_fitting = false, 0, 0
    local failure
    while true do
      local number, _, _, counter, limit, window, need, amount, pace, kind, count_denied, refund, last, most, pace_denied =
        unpack(HIT, batch, position)
      position = position + HIT_SIZE
      if not state and not why then
        state = states[counter]
        if not state then
          _, _, state, why = algorithm(number).take(keys[counter], window, -1, 0, 0)
        end
      end
      states[place or counter] = state
      failure = failure or why
      if not state then
        -- The rest of the request is read, and not decided.
      elseif last == 2 and count == 0 and refund == 0 and not failure then
        -- One hit is all of the request: decided without a table for it.
        local over = state.used + need > limit
        if not over then
          if amount > 0 then state.functions.record(state, amount, pace) end
        elseif count_denied == 1 then charge(state, amount, most, pace_denied) end
        local admitted = not over or kind % 2 == 1
        say(pack('>BBI7I7', admitted and 0 or 1, over and 1 or 0, state.used, wait_of(state, over, limit, need)))
        return position
      else
        local used = state.used + state.sure + state.asked
        count = count + 1
        local hit = hits[count]
        if not hit then
          hit = {}
          hits[count] = hit
        end
        hit.state, hit.over, hit.out, hit.amount, hit.refund = state, used + need > limit, false, amount, refund
        hit.count_denied, hit.limit, hit.most, hit.need = count_denied, limit, most, need
        hit.pace, hit.pace_denied, hit.asked_before, hit.charged = pace, pace_denied, state.asked, 0
        if refund > 0 then
          -- What is taken back or granted comes as a request of its own, with nothing in it to be judged on top.
          hit.over = false
          if refund == 1 then state.sure = state.sure - math.min(amount, used) end
        elseif count_denied == 1 then
          foresee_charge(hit)
        elseif not hit.over then
          state.asked = state.asked + amount
        end
        descriptor_over = descriptor_over or hit.over
      end
      if last > 0 then
        if descriptor_over then
          put_out(descriptor_from, count)
          denied = denied or kind == 0
        end
        if kind >= 2 then
          quotas = quotas + 1
          if not descriptor_over or kind == 3 then quotas_fitting = quotas_fitting + 1 end
        end
        descriptor_from, descriptor_over = count + 1, false
      end
      if last >= 2 then
        if failure then
          say(pack('>BH', 2, #failure) .. failure)
          for i = 1, count do hits[i].state.asked, hits[i].state.sure = 0, 0 end
        else
          conclude(count, not denied and (quotas == 0 or quotas_fitting > 0), last == 3)
        end
        return position
      end
      state, why = nil, nil
    end
  end

  local position_after -- a request of which all hits were taken

  -- Takes the hits of a plain request from the one at `position` on, if all of them fit, and tells of them: whether it did. As
  -- each is recorded only after those that follow, what was read of it waits on Lua's stack, and needs no table.
  local function take_all(position)
    local number, _, more, counter, limit, window, need, amount, pace = unpack(BASIS, batch, position)
    local place = #reply + 1
    reply[place] = '' -- its own: the others tell before it does
    position_after = position + HIT_SIZE
    local others = more == 1 and take_all
    local used, wait = algorithm(number).take(keys[counter], window, limit, need, amount, pace, false, others, position_after)
    reply[place] = used and pack('>BI7I7', 0, used, wait + 1)
    return used
  end

  -- Takes a plain request's hits if all of them fit, which admits it: the position after the request. Else nil, and nothing is
  -- said or recorded.
  local function take_request(position)
    say(pack('B', 0))
    if take_all(position) then return position_after end
    reply[#reply] = nil
  end

  local function write()
    for _, state in pairs(states) do
      if state.dirty then state.functions.write(state) end
    end
  end

  return take_request, decide, write
end

local keys, batch, reply, position = KEYS, ARGV[1], {}, 1
local take_request, decide, write -- made when first needed
local told, told_used, told_wait -- the last reply to a plain hit that fits: many are told the same
while position <= #batch do
  local number, run, more, counter, limit, window, need, amount, pace = unpack(BASIS, batch, position)
  if run == 0 or more == 1 then
    if not decide then take_request, decide, write = make_decide(keys, batch, reply) end
    position = run == 1 and take_request(position) or decide(position)
  else
    local take = algorithm(number).take
    -- The first key that this run made, if it did, and what its hit was told: keys that are new after it become copies of it,
    -- expiry and all, and are told the same. nil: none yet. false: it can't be copied: Redis can't (before 6.2) or may not, or it
    -- has expired.
    local original, original_told
    -- How many of the next keys are taken to be new and copied before they are read: one more for each that was new, one less for
    -- each that was not. Where clients come once, most are. Above 0 there is an original.
    local guesses = 0
    for place = counter, counter + run - 1 do
      local key = keys[place]
      local used, wait, state, why = false -- false: it is new, or taken to be
      if guesses == 0 then used, wait, state, why = take(key, window, limit, need, amount, pace, original and true) end
      if used == false then
        local copied = try('COPY', original, key)
        if copied == 1 then
          guesses = guesses + 1
          reply[#reply + 1] = original_told
        else
          -- It is there already; or there is no original.
          if copied == 0 and guesses > 0 then guesses = guesses - 1 else original, guesses = false, 0 end
          used, wait, state, why = take(key, window, limit, need, amount, pace)
        end
      end
      if used then
        -- Of nine bytes the first two are 0: admitted, and not over.
        if used ~= told_used or wait ~= told_wait then
          told, told_used, told_wait = pack('>I9I7', used, wait + 1), used, wait
        end
        reply[#reply + 1] = told
        -- What is a state else says here that it made the key.
        if state and original == nil then original, original_told, guesses = key, told, 1 end
      elseif used == nil then
        if not decide then take_request, decide, write = make_decide(keys, batch, reply) end
        decide(position, place, state, why)
      end
    end
    position = position + HIT_SIZE
  end
end
if write then write() end
return reply[2] and table.concat(reply) or reply[1]
