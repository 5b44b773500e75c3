"""Words by what they do to a value that stands beside them: a kind a table, a language a line.

_ is a blank in a word; the other signs are those of regular expressions. A language is added as a line.
"""

from mathse.answers.spell import any_of

DENIAL = any_of("""
    cannot eliminat\\w* except exclud\\w* fails? false impossible incorrect neither never no nor not other_than reject\\w*
    ruled_out rules_out wrong
    nicht
    [不没未非错]
""")
DOUBT = any_of("""
    could either instead may maybe might perhaps possibly would
    可能
""")
SUPPOSITION = any_of("""
    assum\\w+ if imagine let_(?:me|us)_try pretend suppos\\w+ unless whether
    (?:假设|假如|如果|[若设])(?![^.!?\\n]*[,，])
""")
SAYING = any_of("""
    claim\\w* guess(?:ed)?_that said says wrote
""")
CHANGE = any_of("""
    cubed double half minus opposite plus reciprocal squared twice
""")
OPERATION = any_of("""
    add cube difference divided? divisible factor factorial multipl\\w+ out_of per percent\\w* power product quotient
    remainder root square subtract sum times without
    倍 分之
""")
BOUND = any_of("""
    above almost below beyond between bigger bound\\w* exceeds? extra fewer further higher inclusive inside least less
    limit\\w* longer lower max\\w* min\\w* more most nearly onwards? outside over short shorter tops under up_to upwards?
    within \\w{3,}er_than
    [大小多少低高]于 [至最][多少] 以[上下内] 左右 将近 超过 零下
""")
RETRACTION = any_of("""
    contradict correction hmm hold_on however never_mind not_it on_second_thought oops scratch_that sorry
    不对[,，.] 不成立 更正 算错 矛盾 重新
""")
EQUALS = any_of("""
    are be becomes? bought contains? costs? covers? earns? ends_at equals?(?:_to)? find gets?(?:_back)? get gives? had?
    has have hence holds? is lasts? leaves? makes? measures? needs? obtain pays? reads? says shows? so spent starts_at
    takes? that then therefore thus took travels? was weighs? were
    (?<![不并])[为是有长共] 等于 需要? 花了 走了 所以 因此 得到?
""")  # before a value
PLEASANTRY = any_of("""
    feel_free i'm i_am i_can i_hope is_there_anything let_me_know note please sorry you_should
""")
NOTHING = any_of("""
    (?:has_|have_)?no_(?:real_)?solutions? infinitely_many cannot_be_determined does_not_exist is_undefined
    无解 不存在
""")
