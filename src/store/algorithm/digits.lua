-- Whole numbers as commands' arguments. Of a number Redis would make it by itself, before 7.2 by way of seventeen digits of a
-- fraction, which costs as much as the command. Most counters of a batch need the same ones.
local digits = setmetatable({}, {
  __index = function(made, number)
    local text = string.format('%d', number)
    made[number] = text
    return text
  end,
})
