"""Common short English words, names and things: what exercises are about.

The list is small on purpose: a model of a few million parameters learns how each word is spelt, and is then asked to do
something new with it.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: tuple[str, ...] = _words(
    """
able acid actor age air also angel animal ant apple april arm army art ask autumn baby back bag baker ball banana band
bank barn basket bath beach bean bear bed bee bell belt bench berry best bike bird black blue board boat body bone
book boot bottle bowl box boy brain branch bread brick bridge bright broom brother brown brush bucket bus bush butter
button cabin cake calm camel camp candle candy cap car card carpet carrot castle cat chair chalk cheese cherry chess
chicken child circle city class clay clean clock cloth cloud coat coffee coin cold color cook copper corn cotton count
cousin cow cream crow crown cup dance dark dawn day deer desert desk dinner dish dog doll donkey door dragon dream
dress drink drum duck dust eagle ear early earth east easy egg eight elbow engine evening eye face family farm farmer
fast father feather fence field finger fire fish five flag flame floor flower fly fog food foot forest fork four fox
free fresh friend frog fruit full game garden gate ghost giant gift girl glass globe glove goat gold good goose grain
grape grass great green group guest guitar hair hammer hand happy harbor hat hawk head heart heavy hen hill home honey
hook horse hot hotel house hungry ice idea ink iron island ivory jacket jam jar jelly jewel job joke judge juice jump
jungle kettle key king kitchen kite knee knife lady lake lamb lamp land large late leaf left lemon letter light lime
line lion lip list little long lunar lunch machine magic map maple marble market mask meadow meal metal milk mill
minute mirror money monkey moon morning mother motor mouse mouth mud music nail name narrow near neck needle nest new
night nine noble noise noon north nose novel number nurse nut oak ocean office oil old olive one onion open orange
oven owl page paint pair palace panda paper park parrot party path peach pear pen pencil penny people pepper piano
picture pig pillow pilot pine pink pipe pirate planet plant plate play pocket poem pond pony potato price prince
purple puzzle queen quick quiet rabbit radio rain rat raven red ribbon rice rich right ring river road robin robot
rock roof room root rope rose round royal ruby rug ruler sack sad safe sail salad salt sand school sea seal seed seven
shadow shark sheep shell ship shirt shoe shop short silk silver sister six skin sky sleep slow small smile smoke snail
snake snow soap sock soft soil song soup south space spider spoon sport spring square stable star stone storm story
street student sugar summer sun sunny swan sweet swim table tail tall tea teacher ten tent thin three ticket tiger
time tin tooth tower town toy train tree truck tulip turtle two uncle under valley van velvet village violin voice
wagon wall warm water wave whale wheat wheel white wide wild wind window winter wise wolf wood wool word work world
yard year yellow young zebra zero zoo
"""
)

PEOPLE: tuple[str, ...] = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mary Nora Oscar Paul Rosa Sam Tom Vera"
)
COLOURS: tuple[str, ...] = _words("red blue green yellow black white brown pink grey orange purple silver")
THINGS: tuple[str, ...] = _words(
    "ball cup book hat bag box pen car kite coat lamp chair ring key boat doll drum bike scarf bowl"
)
PLACES: tuple[str, ...] = _words(
    "garden kitchen school park forest house shop barn tower station library office market castle hotel"
)
ANIMALS: tuple[str, ...] = _words("cat dog horse rabbit parrot turtle goat duck mouse fish snake hen")
