"""Ordinary English words, for things that people say to nano which are no sums: enough of them
that the model learns to recognise what it cannot do, and the tokenizer to spell it."""

_NOUNS = """
animal answer apple april area army art author autumn baby ball bank bear bed bicycle bird birthday
boat body bone book bottle box boy bread breakfast bridge brother building bus butter cake camera
candle captain car cat century chair change cheese chicken child church city class climate clock
cloud coat code coffee college colour company computer cook country cow crowd cup dance daughter day
desert dictionary dinner doctor dog door dream dress earth economy egg electricity elephant email
engine england essay europe evening event eye face factory family farm father festival field film
fire fish flower food forest france friend fruit function future game garden germany girl glass gold
government grammar grass guitar hair hand hat health heart history holiday home horse hospital hotel
hour house ice idea island italy january japan job joke journey juice july king kitchen knife
language law leaf lemon lesson letter library life light lion list machine magic man map market
meal meaning meat medicine memory message metal milk mind minute mirror money monday month moon
morning mother mountain mouse movie music name nation nature news newspaper night noise novel number
nurse ocean office oil opinion orange page paint painting paper parent paris party password peace
pen people person phone photo piano picture pizza place plan planet plant poem poet police potato
president price prince problem program python queen question radio rain reason recipe religion
restaurant rice river road robot room rose salt sand school science sea season secret sentence shirt
shoe shop sister sky snow soldier song soup space spain spring star station stone story street
student sugar summer sun system table tea teacher team tennis theory time title tooth town toy train
travel tree trip truth universe vegetable village violin voice wall war watch water weather wedding
week wheel wife wind window wine winter woman wood word work world writer year zoo
"""

_VERBS = """
analyse become begin believe bring build buy call carry catch check choose clean climb compare cook
correct create debug define describe design discuss draw drink drive eat explain fight find fix fly
forget give grow guess hear help hide imagine improve invent invite know learn leave like list
listen love make meet move name open organise paint plan play prepare prove read recommend remember
repair repeat review rewrite ride run say search see sell send show sing sleep speak spell start
stop study suggest summarise swim talk teach tell test think throw translate travel try understand
use visit wait walk wash watch wear win wish write
"""

_ADJECTIVES = """
angry bad beautiful best big black blue brave bright busy cheap clever cold cool dangerous dark deep
difficult dirty dry early easy empty expensive famous fast favourite foreign free fresh friendly
full funny good great green happy hard healthy heavy high hot huge hungry important interesting kind
large late lazy light little local long lucky modern new nice noisy old open perfect poor popular
pretty quick quiet rich right sad safe short simple slow small soft strange strong sweet tall thick
thin tired true useful warm weak wet white wide wild wise wonderful wrong yellow young
"""

_SMALL = """
a about after again all also always an and any are as at be because been before but by can could did
do does down even ever every for from had has have he her here him his how i if in into is it its
just let many may me more most much must my never no not now of off often on only or other our out
over please really she should so some something soon still such than that the their them then there
these they this those through to today together too two under until up us very was we well were what
when where which while who whose why will with without would yes yet you your
"""

NOUNS = tuple(_NOUNS.split())
VERBS = tuple(_VERBS.split())
ADJECTIVES = tuple(_ADJECTIVES.split())
SMALL = tuple(_SMALL.split())
